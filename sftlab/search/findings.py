"""The decision in short lines: the proposal, its check, its rivals, what the constraints cost, what to run next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftlab.search.decision import WEIGHTED, Axis, ranges_of, slices_of
from sftlab.search.observation import Trial
from sftlab.search.proposal import LIKELY, Beliefs
from sftlab.search.spec import Constraint, SearchSpec
from sftlab.stats.interval import middle

MOST_LISTED = 4  # candidates listed one by one
NEAR = 0.1  # a candidate is mentioned if it misses LIKELY by no more than this
SAFE = 0.8  # a constraint that is less likely to hold is reported as doubtful
NOT_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Measured:
    """A composition that was run.

    Attributes:
        trial: The composition, and why it was run.
        scores: Mean score of each ability over its seeds.
        average: Their weighted mean.
    """

    trial: Trial
    scores: Mapping[str, float]
    average: float


@dataclass(frozen=True, eq=False)
class Findings:
    """What a search knows when it has ended, told in lines.

    Attributes:
        beliefs: The posterior after the runs, those of the check left out.
        spec: The search.
        axes: The directions of its space.
        measured: Everything that was run.
        check: The check's numbers, as in ``search.json``; None if there was none.
    """

    beliefs: Beliefs
    spec: SearchSpec
    axes: Sequence[Axis]
    measured: Sequence[Measured]
    check: Mapping[str, Any] | None

    def lines(self) -> list[str]:
        """Return the decision, one line for each thing that a reader decides by; advice comes last."""
        if not self.beliefs.has_effect:
            reach = 100 * _hidden(self.beliefs, self.axes)
            return [
                "**These runs show no effect of the composition on any ability** (permutation tests, corrected for "
                "their number). What they cannot rule out is that one factor by itself changes an ability by up to "
                f"{reach:.0f} points; within that, any choice is as good."
            ]
        told = [self._proposal(), *self.check_lines()]
        if self.spec.constraints:
            told += [self._limit(), self._rivals(), self._near(), self._price()]
        else:
            told.append(self._rivals())
        return [line for line in [*told, self._next()] if line]

    def check_lines(self) -> list[str]:
        """Return what the check says: the proposal by itself, and against an anchor."""
        if not self.check:
            return []
        return [line for line in (self._measured(), self._against(), self._not_compared()) if line]

    @property
    def _them(self) -> str:
        return "the constraint" if len(self.spec.constraints) == 1 else "the constraints"

    def _proposal(self) -> str:
        beliefs, best = self.beliefs, self.beliefs.best()
        mean = _interval(beliefs.utility_DC[:, best])
        what = f"predicted {mean_name(self.spec.weights)}"
        found = f"**Proposal: {self.spec.space.text(beliefs.candidates[best])}.**"
        floors = _and([constraint.text() for constraint in self.spec.constraints])
        if not floors:
            return f"{found} It has the highest {what}: {mean}."
        if beliefs.chance()[best] >= LIKELY:
            sure = f"with a probability of {LIKELY:.0%} or more"
            return f"{found} Of the candidates that keep {floors} {sure}, it has the highest {what}: {mean}."
        likeliest = f"No candidate keeps {floors} with a probability of {LIKELY:.0%}; this one is the likeliest to."
        return f"{found} {likeliest} Its {what} is {mean}."

    def _measured(self) -> str:
        """Tell the check's score of the proposal beside its prediction."""
        check = self.check or {}
        seeds = check["seeds"]
        counts = {row["ability"]: row["num_problems"] for row in check["rows"] if row["num_problems"]}
        asked = f", on {_counts(counts)}" if counts else ""
        start = (
            f"**Measured with {len(seeds)} fresh seed{'s' * (len(seeds) != 1)}** ({', '.join(map(str, seeds))}){asked}"
        )
        told = f"{start}: an average score of {check['measured']:.1%} where {check['predicted']:.1%} was predicted."
        off = [row for row in check["rows"] if row["is_surprise"]]
        if off:
            each = _and([f"{r['ability']} has {r['measured']:.1%} and not {r['predicted']:.1%}" for r in off])
            told += f" {each[0].upper()}{each[1:]}: more than noise, so what is predicted for "
            told += f"{'it' if len(off) == 1 else 'them'} near the proposal is in doubt. "
            told += "Predictions were not refitted with the check's runs."
        return told

    def _against(self) -> str:
        check = self.check or {}
        ends = (
            ""
            if check["low"] is None
            else f" ({100 * check['low']:+.1f} to {100 * check['high']:+.1f}, 95 % over seeds)"
        )
        each = "; ".join(f"{row['ability']} {100 * row['difference']:+.1f} ({row['words']})" for row in check["rows"])
        only = " only" * bool(self.spec.constraints)
        return (
            f"**Against {check['anchor']}{only}**, {self._which_anchor()}, which has {check['anchor_measured']:.1%}: "
            f"{check['verdict']}, {100 * check['difference']:+.1f} points{ends}; {each}."
        )

    def _which_anchor(self) -> str:
        num_likely = int(self.beliefs.likely_anchors().sum())
        keep = f"likely keep{'s' * (num_likely == 1)} {self._them}"
        if not self.spec.constraints:
            return "the best of the anchors"
        if num_likely == 0:
            return f"the best of the anchors, none of which likely keeps {self._them}"
        return (
            f"the only anchor that {keep}" if num_likely == 1 else f"the best of the {num_likely} anchors that {keep}"
        )

    def _not_compared(self) -> str:
        """Name the best run and the best anchor that break a constraint, where they score higher than the proposal."""
        if not self.spec.constraints or not self.check:
            return ""
        broken = [m for m in self._seen() if m.average > self.check["measured"] and not self._is_likely(m)]
        broken = sorted((m for m in broken if not self._kept(m)), key=lambda m: -m.average)
        if not broken:
            return ""
        shown = [broken[0], *[m for m in broken[1:] if m.trial.anchor][: not broken[0].trial.anchor]]
        told = "; ".join(self._named(m) for m in shown)
        more = len(broken) - len(shown)
        return (
            f"**Not compared** on fresh seeds: what likely breaks {self._them}. When it was searched, "
            f"{len(broken)} of these scored higher than the proposal does: {told}"
            f"{f'; and {more} more' if more else ''}."
        )

    def _limit(self) -> str:
        """Tell whether the constraints are kept: by the check, if it can say, and by the surfaces."""
        chance = float(self.beliefs.chance()[self.beliefs.best()])
        it = "it" if len(self.spec.constraints) == 1 else "all of them together"
        by_check = [words for c in self.spec.constraints if (words := self._by_check(c))]
        if by_check:
            told = f"{' '.join(by_check)} Before the check, the surfaces gave {it} a chance of {chance:.0%}."
        else:
            told = f"**{self._them.capitalize()}:** the surfaces give the proposal a chance of {chance:.0%} of keeping "
            told += f"{it}{'.' if chance >= SAFE else ': too little to rely on.'}"
        for constraint in self.spec.constraints:
            if constraint.anchor:
                floor = max(self.beliefs.floors[constraint], 0)
                told += (
                    f" The limit in scores of {constraint.ability}, about {floor:.1%}, follows what is predicted for "
                )
                told += (
                    f"{constraint.anchor} and is as uncertain: what is predicted at it keeps it in half of all cases."
                )
        return told

    def _by_check(self, constraint: Constraint) -> str:
        """Say what the check shows of a constraint against the anchor that it ran, or against a number."""
        check = self.check or {"rows": [], "anchor": ""}
        row = next((row for row in check["rows"] if row["ability"] == constraint.ability), None)
        if row is None:
            return ""
        start, limit = f"**The constraint**, {constraint.text()},", -constraint.number
        if not constraint.anchor:
            side = "kept" if row["measured"] >= constraint.number else "broken"
            return f"{start} is {side} on average by the check: {row['measured']:.1%}."
        if constraint.anchor != check["anchor"] or row["low"] is None:
            return ""
        kept, broken = row["low"] >= limit, row["high"] < limit
        mean = "kept" if row["difference"] >= limit else "broken"
        verdict = "is kept" if kept else "is broken" if broken else f"is {mean} on average, not yet for sure,"
        ends = f"{100 * row['difference']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        return f"{start} {verdict} by the check: {ends}; the limit is {100 * limit:+.1f}."

    def _rivals(self) -> str:
        """Describe the other candidates that may be as good."""
        beliefs, best = self.beliefs, self.beliefs.best()
        inside_C, num_others = beliefs.inside_noise(), int(beliefs.likely().sum()) - 1
        mean_C = beliefs.utility_DC.mean(0)
        alike = [c for c in np.argsort(-mean_C).tolist() if inside_C[c] and c != best]
        others = f"{num_others} other candidate{'s' * (num_others != 1)}"
        if self.spec.constraints:
            reach = f"reach{'es' * (num_others == 1)} {LIKELY:.0%}"
            others += f" that {reach}" if beliefs.chance()[best] >= LIKELY else " as likely to"
        if not alike:
            return f"**Rivals:** none, each of the {others} is shown to be worse." if num_others else ""
        start = f"**Rivals:** of the {others}, {len(alike)} {'is' if len(alike) == 1 else 'are'} not shown to be worse"
        if len(alike) <= MOST_LISTED:
            return f"{start}: {'; '.join(self._candidate(c) for c in alike)}."
        ranges = ranges_of(beliefs, self.axes)
        told = [_range_words(one) for one in ranges if not one["is_noise"]]
        noise = [_name(one) for one in ranges if one["is_noise"]]
        free = f"any value of {_and(noise)}, between which these runs show no difference"
        if not told:
            return f"{start}; among them is {free}."
        if noise:
            told.append(free)
        within = ". Not every combination within these bounds is among them: the report's candidates tell which are"
        return f"{start}; they have {_and(told)}{within if len(told) > 1 else ''}."

    def _near(self) -> str:
        """Describe what just misses the constraints, and what kept them when it was run, if it may be better."""
        beliefs, best = self.beliefs, self.beliefs.best()
        chance_C, mean_C = beliefs.chance(), beliefs.utility_DC.mean(0)
        if chance_C[best] < LIKELY:
            return ""
        told, named = [], set()
        near_C = (chance_C < LIKELY) & (chance_C >= LIKELY - NEAR) & (mean_C > mean_C[best])
        if near_C.any():
            first = int(np.where(near_C, chance_C, 0).argmax())
            named.add(beliefs.candidates[first])
            told.append(self._candidate(first, f"predicted {mean_C[first]:.1%}, chance {chance_C[first]:.0%}"))
        told += [self._named(m) for m in self._contenders() if m.trial.point not in named]
        short = f"**Short of {LIKELY:.0%}, and perhaps better than the proposal:** "
        return f"{short}{'; '.join(told)}." if told else ""

    def _price(self) -> str:
        """Describe what the constraints cost: by prediction, and by what the check measured."""
        mean_C, best = self.beliefs.utility_DC.mean(0), self.beliefs.best()
        it, free = "it" if len(self.spec.constraints) == 1 else "them", int(mean_C.argmax())
        start = f"**Price of {self._them}:**"
        if free == best:
            return f"{start} none, the proposal would be the same without {it}."
        with_them, without = (round(100 * float(mean_C[c]), 1) for c in (best, free))
        told = f"{start} without {it} the proposal would be {self._candidate(free)}, predicted "
        told += f"{_interval(self.beliefs.utility_DC[:, free])}. So keeping {it} is predicted to cost "
        told += f"{without - with_them:.1f} points"
        if self.check:
            told += f", and {without - round(100 * self.check['measured'], 1):.1f} from what the check measured"
        return f"{told}."

    def _next(self) -> str:
        """Return advice, after all that is known and with the check in mind."""
        told, check = [], self.check
        if check and check["verdict"] == NOT_SHOWN and (self._some_anchor_keeps() or not self.spec.constraints):
            told.append(
                f"As far as these seeds show, {check['anchor']} does as well: take either, or check with more seeds "
                "(verify)."
            )
        if check and check["verdict"] == "worse":
            told.append(f"The anchor is better than the proposal: take {check['anchor']}.")
        off = [row for row in check["rows"] if row["is_surprise"]] if check else []
        again = [m for m in self._contenders() if check and m.average > check["measured"]]
        if again:
            told.append(
                f"Run {again[0].trial.name} with more seeds before you take the proposal: with {_seeds(again[0])} "
                f"it kept {self._them} and scored higher than the proposal in its check, which may be luck."
            )
        if safer := self._safer():
            doubt = " Take it by what is measured, not by what is predicted."
            told.append(safer + doubt * bool(off))
        if off:
            wrong = _and(
                [f"{'too high' if r['predicted'] > r['measured'] else 'too low'} for {r['ability']}" for r in off]
            )
            told.append(
                f"Predictions near the proposal were {wrong}: choose among its neighbours by runs, not by them."
            )
        return f"**Next:** {' '.join(told)}" if told else ""

    def _safer(self) -> str:
        """Name the candidate that keeps the constraints more likely, where the proposal is not sure to."""
        chance_C, best = self.beliefs.chance(), self.beliefs.best()
        surest = int(np.where(self.beliefs.inside_noise(), chance_C, 0).argmax())
        if not self.spec.constraints or chance_C[best] >= SAFE or chance_C[surest] <= chance_C[best]:
            return ""
        if " is kept by the check" in self._limit():
            return ""
        return (
            f"Where keeping {self._them} matters more than the average score, run "
            f"{self._candidate(surest)}: of those not shown to be worse it has the best predicted chance, "
            f"{chance_C[surest]:.0%}."
        )

    def _some_anchor_keeps(self) -> bool:
        return bool(self.beliefs.likely_anchors().any())

    def _seen(self) -> list[Measured]:
        return [m for m in self.measured if m.trial.why != "verification"]

    def _kept(self, m: Measured) -> bool:
        """Return whether measured scores reach every limit."""
        return all(m.scores[c.ability] >= self.beliefs.floors[c] for c in self.spec.constraints)

    def _is_likely(self, m: Measured) -> bool:
        """Return whether the surfaces, or an anchor's own runs, let it likely keep the constraints."""
        beliefs = self.beliefs
        if m.trial.anchor:
            return bool(beliefs.likely_anchors()[beliefs.anchors.index(m.trial.anchor.name)])
        return bool(beliefs.chance()[beliefs.candidates.index(m.trial.point)] >= LIKELY)  # type: ignore[arg-type]

    def _contenders(self) -> list[Measured]:
        """Return runs that kept the constraints and beat the proposal, but are not likely to by the surfaces."""
        mine = self.check["measured"] if self.check else self.beliefs.utility_DC[:, self.beliefs.best()].mean()
        found = [m for m in self._seen() if m.average > mine and self._kept(m) and not self._is_likely(m)]
        return sorted(found, key=lambda m: -m.average) if self.spec.constraints else []

    def _candidate(self, number: int, *about: str) -> str:
        """Return a candidate as text, with what is known of it and its scores if it was run."""
        point = self.beliefs.candidates[number]
        run = next((m for m in self._seen() if m.trial.point == point), None)
        told = [*about, *([f"run as {run.trial.name}, {_seeds(run)}: {self._scores(run)}"] if run else [])]
        return self.spec.space.text(point) + (f" ({'; '.join(told)})" if told else "")

    def _named(self, m: Measured) -> str:
        point = m.trial.point
        text = "" if point is None else f"{self.spec.space.text(point)}; "
        return f"{m.trial.name} ({text}{_seeds(m)}) with {self._scores(m)}"

    def _scores(self, m: Measured) -> str:
        """Return the measured average score, and each ability that a constraint is on, beside its limit."""
        told = [f"{m.average:.1%}"]
        for c in self.spec.constraints:
            side = "above" if m.scores[c.ability] >= self.beliefs.floors[c] else "below"
            told.append(f"{c.ability} {m.scores[c.ability]:.1%}, {side} the limit")
        return ", ".join(told)


def mean_name(weights: Mapping[str, float]) -> str:
    """Name the average that the weights define."""
    weighed = {ability: weight for ability, weight in weights.items() if weight > 0}
    if len(set(weighed.values())) == 1:
        return f"average score of {_and(list(weighed))}" if len(weighed) > 1 else f"score of {next(iter(weighed))}"
    return f"weighted average score ({', '.join(f'{ability} {weight:g}' for ability, weight in weighed.items())})"


def _seeds(m: Measured) -> str:
    return f"{m.trial.num_runs} seed{'s' * (m.trial.num_runs != 1)}"


def _counts(counts: Mapping[str, int]) -> str:
    """Return numbers of problems as text."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} problems of each ability"
    return _and([f"{count:,} problems of {ability}" for ability, count in counts.items()])


def _interval(draws_D: np.ndarray) -> str:
    low, high = middle(draws_D)
    return f"{draws_D.mean():.1%} ({100 * low:.1f} to {100 * high:.1f}, 95 % interval)"


def _name(one: dict[str, Any]) -> str:
    return f"the share of {one['axis']}" if one["is_share"] else str(one["axis"])


def _and(texts: Sequence[str]) -> str:
    """Join texts: a, b and c."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _range_words(one: dict[str, Any]) -> str:
    if one["options"]:
        return f"{_name(one)} at {' or '.join(one['options'])}"
    if one["low"] == one["high"]:
        return f"{_name(one)} at {one['low']}"
    return f"{_name(one)} between {one['low']} and {one['high']}"


def _hidden(beliefs: Beliefs, axes: Sequence[Axis]) -> float:
    """Return the largest change of an ability along one axis that is still possible."""
    return max(max(one["change_high"], -one["change_low"]) for one in slices_of(beliefs, axes) if one["of"] != WEIGHTED)
