"""The decision in words, and the numbers behind it: the proposal, what is inside noise, which factors matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftlab.search.factors import Choice, Number, Shares, Value, share_text
from sftlab.search.proposal import LIKELY, Beliefs
from sftlab.search.space import Point, Space
from sftlab.search.spec import SearchSpec
from sftlab.stats.interval import middle

MOST_GROUPS = 7  # values of a factor that a slice shows
MOST_LISTED = 4  # candidates listed one by one
NEAR = 0.1  # a candidate is mentioned if it misses LIKELY by no more than this
SAFE = 0.8  # a constraint that is less likely to hold is reported as doubtful
WEIGHTED = "weighted mean"


@dataclass(frozen=True, eq=False)
class Axis:
    """One direction of the space.

    Attributes:
        name: Name of the factor, or of the ability whose share it is.
        is_share: Whether it is the share of an ability.
        value_C: Value of each candidate on the axis: a number, or an index into the options.
        labels: The options, if values are not numbers.
    """

    name: str
    is_share: bool
    value_C: np.ndarray
    labels: tuple[str, ...] = ()
    is_log: bool = False

    def text(self, value: float) -> str:
        """Return a value as readable text."""
        if self.labels:
            return self.labels[int(value)]
        return share_text(value) if self.is_share else Number(self.name, (), (0.0, 1.0)).text(value)

    def groups(self) -> list[tuple[float, np.ndarray]]:
        """Group candidates by their value; if there are many values, neighbours share a group."""
        places = np.unique(self.value_C)
        if len(places) <= 2 * MOST_GROUPS + 1:
            return [(float(place), self.value_C == place) for place in places]
        edges = np.quantile(self.value_C, np.linspace(0, 1, MOST_GROUPS + 1))
        number_C = np.clip(np.searchsorted(edges, self.value_C, side="right") - 1, 0, MOST_GROUPS - 1)
        return [(float(self.value_C[number_C == i].mean()), number_C == i) for i in np.unique(number_C)]


def axes_of(space: Space, candidates: Sequence[Point]) -> list[Axis]:
    """Return every direction of a space."""
    found = []
    for number, factor in enumerate(space.factors):
        values: list[Value] = [point[number] for point in candidates]
        if isinstance(factor, Shares):
            for i, ability in enumerate(factor.abilities):
                found.append(Axis(ability, True, np.array([v[i] for v in values], dtype=float)))  # type: ignore[index]
        elif isinstance(factor, Choice):
            names = tuple(factor.options)
            found.append(Axis(factor.name, False, np.array([names.index(str(v)) for v in values], dtype=float), names))
        else:
            is_log = isinstance(factor, Number) and factor.is_log
            found.append(Axis(factor.name, False, np.array(values, dtype=float), is_log=is_log))
    return found


def ranges_of(beliefs: Beliefs, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """For each axis, return which values have a candidate that is inside noise of the best."""
    inside_C, best = beliefs.inside_noise(), beliefs.best()
    found = []
    for axis in axes:
        all_places = np.unique(axis.value_C)
        kept = np.unique(axis.value_C[inside_C])
        found.append(
            {
                "axis": axis.name,
                "is_share": axis.is_share,
                "best": axis.text(axis.value_C[best]),
                "all": _places_text(axis, all_places),
                "low": axis.text(kept.min()) if not axis.labels else "",
                "high": axis.text(kept.max()) if not axis.labels else "",
                "options": [axis.labels[int(place)] for place in kept] if axis.labels else [],
                "is_noise": bool(
                    len(kept) == len(all_places)
                    or (not axis.labels and kept.min() == all_places.min() and kept.max() == all_places.max())
                ),
            }
        )
    return found


def _places_text(axis: Axis, places: np.ndarray) -> str:
    if axis.labels:
        return ", ".join(axis.labels[int(place)] for place in places)
    return axis.text(places[0]) if len(places) == 1 else f"{axis.text(places[0])} to {axis.text(places[-1])}"


def words_of(beliefs: Beliefs, spec: SearchSpec, axes: Sequence[Axis], measured: str = "") -> str:
    """Describe the decision in a few sentences: the proposal, what else is as good, and what constraints cost.

    Args:
        beliefs: The posterior after the runs.
        spec: The search.
        axes: The directions of its space.
        measured: The result of the proposal's check; it comes before the predictions.
    """
    if not beliefs.has_effect:
        reach = 100 * _hidden(beliefs, axes)
        return (
            "**These runs show no effect of the composition on any ability** (permutation tests, corrected for their "
            f"number). What they cannot rule out is that one factor by itself changes an ability by up to {reach:.0f} "
            "points; within that, any choice is as good."
        )
    best = beliefs.best()
    floors = _and([f"{c.text()}{_at_least(beliefs.floors[c])}" if c.anchor else c.text() for c in spec.constraints])
    likely_C = beliefs.likely()
    mean = _interval(beliefs.utility_DC[:, best])
    what = f"predicted {mean_name(spec.weights)}"
    found = f"**Proposal: {spec.space.text(beliefs.candidates[best])}.** {measured}"
    if not floors:
        found += f"It has the highest {what}, {mean}. "
    elif beliefs.chance()[best] >= LIKELY:
        sure = f"with a probability of {LIKELY:.0%} or more"
        found += f"Of the candidates that keep {floors} {sure}, it has the highest {what}, {mean}. "
    else:
        found += f"No candidate keeps {floors} with a probability of {LIKELY:.0%}; this one is the likeliest to. "
        found += f"Its {what} is {mean}. "
    found += _others_words(beliefs, spec.space, axes, int(likely_C.sum()) - 1, bool(floors))
    return found + (_near_words(beliefs, spec) + _price_words(beliefs, spec) if floors else "")


def mean_name(weights: Mapping[str, float]) -> str:
    """Name the mean that the weights define."""
    weighed = {ability: weight for ability, weight in weights.items() if weight > 0}
    if len(set(weighed.values())) == 1:
        return f"mean of {_and(list(weighed))}" if len(weighed) > 1 else f"score of {next(iter(weighed))}"
    return f"weighted mean ({', '.join(f'{ability} {weight:g}' for ability, weight in weighed.items())})"


def _others_words(beliefs: Beliefs, space: Space, axes: Sequence[Axis], num_others: int, floors: bool) -> str:
    """Describe the other candidates that may be as good."""
    best, inside_C = beliefs.best(), beliefs.inside_noise()
    mean_C = beliefs.utility_DC.mean(0)
    alike = [c for c in np.argsort(-mean_C).tolist() if inside_C[c] and c != best]
    others = f"{num_others} other candidate{'s' * (num_others != 1)}"
    if floors:
        others += f" that reach these {LIKELY:.0%}" if beliefs.chance()[best] >= LIKELY else " as likely to"
    if not alike:
        return f"Each of the {others} is shown to be worse."
    start = f"Of the {others}, {len(alike)} {'is' if len(alike) == 1 else 'are'} not shown to be worse"
    if len(alike) <= MOST_LISTED:
        return f"{start}: {'; '.join(space.text(beliefs.candidates[c]) for c in alike)}."
    ranges = ranges_of(beliefs, axes)
    told = [_range_words(one) for one in ranges if not one["is_noise"]]
    noise = [_name(one) for one in ranges if one["is_noise"]]
    free = f"any value of {_and(noise)}, between which these runs show no difference"
    if not told:
        return f"{start}; among them is {free}."
    if noise:
        told.append(free)
    within = ". Not every combination within these bounds is among them: the report's candidates tell which are"
    return f"{start}; they have {_and(told)}{within if len(told) > 1 else ''}."


def _near_words(beliefs: Beliefs, spec: SearchSpec) -> str:
    """Describe the candidate that just misses the constraints, if it would be better than the proposal."""
    chance_C, mean_C, best = beliefs.chance(), beliefs.utility_DC.mean(0), beliefs.best()
    near_C = (chance_C < LIKELY) & (chance_C >= LIKELY - NEAR) & (mean_C > mean_C[best])
    if chance_C[best] < LIKELY or not near_C.any():
        return ""
    first = int(np.where(near_C, chance_C, 0).argmax())
    text = spec.space.text(beliefs.candidates[first])
    return f" Just short of these {LIKELY:.0%}, with {chance_C[first]:.0%}: {text}, {mean_C[first]:.1%}."


def _price_words(beliefs: Beliefs, spec: SearchSpec) -> str:
    """Describe what the constraints cost, and how likely the proposal keeps them."""
    best, them = beliefs.best(), "the constraint" if len(spec.constraints) == 1 else "the constraints"
    chance = float(beliefs.chance()[best])
    chance_C, inside_C = beliefs.chance(), beliefs.inside_noise()
    surest = int(np.where(inside_C, chance_C, 0).argmax())
    told = f" The surfaces give the proposal a chance of {chance:.0%} of keeping {them}"
    told += "." if chance >= SAFE else ": too little to rely on."
    if chance < SAFE and chance_C[surest] > chance:
        text = spec.space.text(beliefs.candidates[surest])
        told += f" Of those not shown to be worse, {text} has the best chance, {chance_C[surest]:.0%}: where keeping "
        told += f"{them} matters more than the mean, measure that one next."
    free = int(beliefs.utility_DC.mean(0).argmax())
    if free == best:
        return f"{told} It would be the same without {them}."
    with_them, without = (round(100 * float(beliefs.utility_DC[:, c].mean()), 1) for c in (best, free))
    return (
        f"{told} Without {them} it would be {spec.space.text(beliefs.candidates[free])} with "
        f"{_interval(beliefs.utility_DC[:, free])}: keeping {'it' if len(spec.constraints) == 1 else 'them'} is "
        f"predicted to cost {without - with_them:.1f} points."
    )


def _at_least(floor: float) -> str:
    return f" (at least about {max(floor, 0):.1%}, as the anchor is predicted)"


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


def slices_of(beliefs: Beliefs, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Compute each ability, and the weighted mean, along each axis: the mean over all else, and the axis's effect.

    The effect is the difference between the value with the highest mean and the one with the lowest, with its interval.
    """
    found = []
    scores = {name: beliefs.score_DAC[:, i] for i, name in enumerate(beliefs.abilities)}
    for axis in axes:
        groups = axis.groups()
        for name, draws_DC in {**scores, WEIGHTED: beliefs.utility_DC}.items():
            curve_DL = np.stack([draws_DC[:, mine].mean(1) for _, mine in groups], 1)
            mean_L = curve_DL.mean(0)
            low_L, high_L = middle(curve_DL)
            change_D = curve_DL[:, mean_L.argmax()] - curve_DL[:, mean_L.argmin()]
            low, high = middle(change_D).tolist()
            found.append(
                {
                    "axis": axis.name,
                    "is_share": axis.is_share,
                    "is_log": axis.is_log,
                    "of": name,
                    "places": [place for place, _ in groups],
                    "texts": [axis.text(place) for place, _ in groups],
                    "mean": mean_L.tolist(),
                    "low": low_L.tolist(),
                    "high": high_L.tolist(),
                    "change": float(change_D.mean()),
                    "change_low": low,
                    "change_high": high,
                }
            )
    return found


def candidates_of(beliefs: Beliefs, space: Space) -> list[dict[str, Any]]:
    """Return every candidate with its prediction: whether it keeps the constraints, is inside noise, on the front."""
    inside_C, chance_C, front_C = beliefs.inside_noise(), beliefs.chance(), front_share(beliefs)
    likely_C = beliefs.likely()
    low_C, high_C = middle(beliefs.utility_DC)
    low_AC, high_AC = middle(beliefs.score_DAC)
    mean_AC, utility_C = beliefs.score_DAC.mean(0), beliefs.utility_DC.mean(0)
    best = beliefs.best()
    return [
        {
            "text": space.text(point),
            "rest": [f.text(v) for f, v in zip(space.factors, point, strict=True) if not isinstance(f, Shares)],
            "shares": [float(share) for f, v in zip(space.factors, point, strict=True) if isinstance(f, Shares)
                       for share in v],  # type: ignore[union-attr]
            "scores": {
                name: [float(mean_AC[a, c]), float(low_AC[a, c]), float(high_AC[a, c])]
                for a, name in enumerate(beliefs.abilities)
            },
            WEIGHTED: [float(utility_C[c]), float(low_C[c]), float(high_C[c])],
            "chance": float(chance_C[c]),
            "likely": bool(likely_C[c]),
            "inside_noise": bool(inside_C[c]),
            "on_front": float(front_C[c]),
            "best": bool(c == best),
        }
        for c, point in enumerate(beliefs.candidates)
    ]  # fmt: skip


def front_share(beliefs: Beliefs, num_draws: int = 64) -> np.ndarray:
    """Compute the share of draws in which no other candidate dominates: as good in all abilities, better in one [C]."""
    on_C = np.zeros(len(beliefs.candidates))
    for score_AC in beliefs.score_DAC[:num_draws]:
        at_least_CC = (score_AC[:, :, None] <= score_AC[:, None, :]).all(0)
        better_CC = (score_AC[:, :, None] < score_AC[:, None, :]).any(0)
        on_C += ~(at_least_CC & better_CC).any(1)
    return on_C / min(num_draws, len(beliefs.score_DAC))
