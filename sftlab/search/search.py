"""A search: design, runs, surface, proposal, until the decision is inside noise or the budget is spent; then a check.

    decisions.jsonl   which runs were chosen and why, one line per decision. A decision depends only on the search file
                      and on the runs of earlier decisions; it is written before its runs start and never made again.

A search that was killed and is started again reads its decisions, makes the missing runs, and continues as if it had
not been interrupted.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftlab.files import read_jsonl, write_text
from sftlab.search.design import d_optimal
from sftlab.search.observation import Observation, Trial
from sftlab.search.proposal import Beliefs, believe
from sftlab.search.space import Point
from sftlab.search.spec import SearchSpec

ENOUGH = 0.1
"""A search ends when the expected gain of the next run is below this fraction of the check's standard error."""
DECISIONS = "decisions.jsonl"


class Site(ABC):
    """Where runs are made."""

    @abstractmethod
    def tokens(self, trials: Sequence[Trial], more: Sequence[Trial]) -> int:
        """Count the tokens that ``more`` would train in addition to ``trials``; shared stages count once."""

    @abstractmethod
    def carry_out(self, trials: Sequence[Trial]) -> None:
        """Make all runs of these trials that do not exist yet.

        Raises:
            RunsFailed: Some failed, or are left to the user.
        """

    @abstractmethod
    def saved_tokens(self, trials: Sequence[Trial]) -> tuple[int, int]:
        """Return the tokens of all runs, and those of their distinct stages, which are trained."""

    @abstractmethod
    def observations(self, trials: Sequence[Trial]) -> list[Observation]:
        """Return the scores of the runs of trials, in their order."""


class RunsFailed(Exception):
    """Runs that a search waits for are missing; ``status`` is the exit status of the process."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass(frozen=True)
class Decision:
    """The next step of a search, and why.

    Attributes:
        kind: design, improvement, verification or end.
        trials: What to run; none at the end.
        words: The reason in words.
        numbers: The numbers behind it.
    """

    kind: str
    trials: tuple[Trial, ...]
    words: str
    numbers: dict[str, Any] = field(default_factory=dict)


class Search:
    """Chooses runs and has them made.

    Args:
        spec: The search file.
        site: Makes the runs.
        folder: Where ``decisions.jsonl`` is written.
        tell: Called with each decision in words.
    """

    def __init__(
        self, spec: SearchSpec, site: Site, folder: Path, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.spec, self.site, self.folder, self.tell = spec, site, folder, tell
        self.candidates = spec.space.candidates()
        self.decisions: list[Decision] = []
        self._believed: tuple[tuple[Trial, ...], Beliefs] | None = None  # the trials behind them, and the beliefs

    @property
    def trials(self) -> list[Trial]:
        """All trials chosen so far, in order."""
        return [trial for decision in self.decisions for trial in decision.trials]

    def run(self) -> None:
        """Continue to the end.

        Raises:
            ValueError: The budget is too small, or the folder holds another search's decisions.
            RunsFailed: Runs could not be made.
        """
        self.read()
        if self.decisions:
            self.site.carry_out(self.trials)
        while not self.decisions or self.decisions[-1].kind != "end":
            self._append(self.next_decision())
            if self.decisions[-1].trials:
                self.site.carry_out(self.trials)

    def beliefs(self) -> Beliefs:
        """Return the posterior after all runs so far, except those of the check, which are judged by themselves."""
        trials = tuple(trial for trial in self.trials if trial.why != "verification")
        if self._believed is None or self._believed[0] != trials:
            about = (self.spec.weights, self.spec.constraints)
            seen = self.site.observations(trials)
            self._believed = trials, believe(self.spec.space, self.candidates, trials, seen, *about)
        return self._believed[1]

    def next_decision(self) -> Decision:
        """Decide what to run next, once all runs so far are made."""
        if not self.decisions:
            return self.design()
        if self.decisions[-1].kind == "verification":
            return Decision("end", (), "Checked with fresh seeds.")
        beliefs = self.beliefs()
        numbers = _numbers(beliefs)
        taken = {trial.point for trial in self.trials if trial.point is not None}
        most = self._room(self._check(beliefs))
        if not beliefs.has_effect:
            trials = self._more_of_the_design(taken, min(self.spec.batch, most), beliefs)
            if not trials:
                return Decision("end", (), "No effect of the composition is seen with the whole budget.", numbers)
            runs = sum(trial.num_runs for trial in trials)
            about = f"No effect of the composition is seen yet: {_runs(runs, 'more ')} of the design."
            return Decision("design", trials, about, numbers)
        chosen, gain = beliefs.improvements(taken, min(self.spec.batch, most)) if most else ([], 0.0)
        enough = ENOUGH * beliefs.noise * (2 / self.spec.verify) ** 0.5
        numbers |= {"expected_gain": gain, "enough": enough}
        if chosen and gain >= enough:
            trials = self._trials([self.candidates[i] for i in chosen], "improvement")
            trials = self._affordable(trials, self._check(beliefs))
            if trials:
                about = f"{_runs(_num_runs(trials))} where they are expected to gain most ({100 * gain:.2f} points)."
                return Decision("improvement", trials, about, numbers)
        why = (
            "The runs to search with are spent."
            if not chosen or gain >= enough
            else "What further runs would gain is inside noise."
        )
        check = self._check(beliefs)
        if not check:
            return Decision("end", (), f"{why} The best is an anchor: there is nothing to check.", numbers)
        proposal = self.spec.space.text(self.candidates[beliefs.best()])
        about = f"{why} To be checked with fresh seeds: {proposal}, against {beliefs.best_anchor()}."
        return Decision("verification", tuple(check), about, numbers)

    def design(self) -> Decision:
        """Choose the anchors and a D-optimal design, about half of the budget that remains beside the check.

        Raises:
            ValueError: The budget is too small.
        """
        spec, anchors = self.spec, self._anchor_trials()
        points, check = self._affordable_design(anchors)
        if points is None:
            budget = f"runs: {spec.max_runs}" if spec.max_runs is not None else f"tokens: {spec.max_tokens}"
            raise ValueError(
                f"budget: {{{budget}}} leaves nothing to search with: the anchors take {_num_runs(anchors)} runs "
                f"(replicates: {spec.replicates}) and the check {2 * spec.verify} (verify: {spec.verify}); give more, "
                "or lower these"
            )
        trials = [*anchors, *self._trials(points, "design")]
        runs, num_anchors = _num_runs(trials), _num_runs(anchors)
        if spec.max_tokens is not None:
            taken = f"{spec.max_tokens:,} tokens they take {self.site.tokens([], trials):,} and the check {check:,}"
        else:
            taken = f"{spec.max_runs} runs they take {runs} and the check {check}"
        words = (
            f"{_runs(num_anchors)} of {len(anchors)} anchor{'s' * (len(anchors) != 1)} and {_runs(runs - num_anchors)} "
            f"of a D-optimal design. Of the budget of {taken}; the rest is for runs where they are expected to gain "
            "most."
        )
        return Decision("design", tuple(trials), words, {"num_candidates": len(self.candidates)})

    def _anchor_trials(self) -> list[Trial]:
        """Return a trial for each anchor; the first one has further seeds."""
        trials = []
        for number, anchor in enumerate(self.spec.anchors):
            more = tuple(max(self.spec.seeds) + 1 + i for i in range(self.spec.replicates)) if number == 0 else ()
            trials.append(Trial(anchor.name, anchor.point, (*self.spec.seeds, *more), "anchor", anchor))
        return trials

    def _affordable_design(self, anchors: Sequence[Trial]) -> tuple[list[Point] | None, int]:
        """Return a design for half of what anchors and check leave of the budget, and the cost of the check.

        The design is None if nothing is left. The cost is in the budget's unit, runs or tokens.
        """
        spec, space = self.spec, self.spec.space
        given = [trial.point for trial in anchors if trial.point is not None]
        allowed = [point for point in self.candidates if space.allows(point)]
        if spec.max_tokens is None:
            assert spec.max_runs is not None
            check = 2 * spec.verify
            room = (spec.max_runs - _num_runs(anchors) - check) // len(spec.seeds)
            return d_optimal(space, given, allowed, -(-room // 2)) if room >= 1 else None, check
        points = d_optimal(space, given, allowed, 4 * space.columns([space.middle()]).quadratic().shape[1])
        like_check = self._trials(points[:1], "verification", spec.fresh_seeds(), "check")
        check = 2 * self.site.tokens([], like_check)
        spare = spec.max_tokens - self.site.tokens([], anchors) - check
        if spare <= 0:
            return None, check
        kept: list[Point] = []
        for point in points:
            if kept and self.site.tokens(anchors, self._trials([*kept, point], "design")) > spare / 2:
                break
            kept.append(point)
        return kept, check

    def _more_of_the_design(self, taken: set[Point], num_points: int, beliefs: Beliefs) -> tuple[Trial, ...]:
        allowed = [point for point in self.candidates if self.spec.space.allows(point)]
        points = d_optimal(self.spec.space, sorted(taken, key=str), allowed, num_points) if num_points else []
        return self._affordable(self._trials(points, "design"), self._check(beliefs))

    def _trials(
        self, points: Sequence[Point], why: str, seeds: Sequence[int] = (), name: str = "p"
    ) -> tuple[Trial, ...]:
        start = sum(trial.why in ("design", "improvement") for trial in self.trials)
        seeds = tuple(seeds) or self.spec.seeds
        return tuple(Trial(f"{name}{start + i + 1:02d}", point, seeds, why) for i, point in enumerate(points))

    def _check(self, beliefs: Beliefs) -> list[Trial]:
        """Return the proposal and the best anchor with fresh seeds; nothing if they are the same."""
        point, name = self.candidates[beliefs.best()], beliefs.best_anchor()
        anchor = next(anchor for anchor in self.spec.anchors if anchor.name == name)
        if anchor.point == point:
            return []
        seeds = self.spec.fresh_seeds()
        return [
            Trial("proposal", point, seeds, "verification"),
            Trial(f"{name}_again", anchor.point, seeds, "verification", anchor),
        ]

    def _room(self, check: Sequence[Trial]) -> int:
        """Return how many trials of one batch the budget in runs allows, with the check reserved."""
        if self.spec.max_runs is None:
            return self.spec.batch
        reserve = max(_num_runs(check), 2 * self.spec.verify)
        return max(0, (self.spec.max_runs - _num_runs(self.trials) - reserve) // len(self.spec.seeds))

    def _affordable(self, trials: tuple[Trial, ...], check: Sequence[Trial]) -> tuple[Trial, ...]:
        """Return as many of the first trials as the budget in tokens allows, with the check reserved."""
        if self.spec.max_tokens is None:
            return trials
        spare = self.spec.max_tokens - self.site.tokens([], [*self.trials, *check])
        while trials and self.site.tokens(self.trials, trials) > spare:
            trials = trials[:-1]
        return trials

    def _append(self, decision: Decision) -> None:
        self.decisions.append(decision)
        rows = [{"identity": self.spec.identity(), **decision_row(one)} for one in self.decisions]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / DECISIONS, "".join(json.dumps(row) + "\n" for row in rows))
        self.tell(f"{decision.kind}: {decision.words}")

    def read(self) -> None:
        """Read the decisions of an earlier call.

        Raises:
            ValueError: They belong to another search, or are damaged.
        """
        path = self.folder / DECISIONS
        rows = read_jsonl(path) if path.is_file() else []
        if any(row.get("identity") != self.spec.identity() for row in rows):
            raise ValueError(
                f"{path} holds decisions of another search; give this one another name (--name), or delete it"
            )
        anchors = {anchor.name: anchor for anchor in self.spec.anchors}
        self.decisions = [decision_of(row, anchors) for row in rows]


def _runs(count: int, which: str = "") -> str:
    return f"{count} {which}run{'s' * (count != 1)}"


def _numbers(beliefs: Beliefs) -> dict[str, Any]:
    return {
        "forms": {ability: surface.form for ability, surface in beliefs.surfaces.items()},
        "held_out": {ability: surface.held_out for ability, surface in beliefs.surfaces.items()},
        "effects": beliefs.effects,
        "noise": beliefs.noise,
    }


def _num_runs(trials: Sequence[Trial]) -> int:
    return sum(trial.num_runs for trial in trials)


def decision_row(decision: Decision) -> dict[str, Any]:
    """Return a decision as a JSON object."""
    trials = [
        {
            "name": trial.name,
            "point": trial.point,
            "seeds": trial.seeds,
            "why": trial.why,
            "anchor": trial.anchor.name if trial.anchor else None,
        }
        for trial in decision.trials
    ]
    return {"kind": decision.kind, "trials": trials, "words": decision.words, "numbers": decision.numbers}


def decision_of(row: Mapping[str, Any], anchors: Mapping[str, Any]) -> Decision:
    """Return the decision of a line.

    Raises:
        ValueError: The line is not a decision.
    """
    try:
        trials = tuple(
            Trial(
                str(one["name"]),
                None if one["point"] is None else tuple(tuple(v) if isinstance(v, list) else v for v in one["point"]),
                tuple(one["seeds"]),
                str(one["why"]),
                anchors[one["anchor"]] if one["anchor"] else None,
            )
            for one in row["trials"]
        )
        return Decision(str(row["kind"]), trials, str(row["words"]), dict(row["numbers"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{DECISIONS}: a line is not a decision ({error}); delete the file to start again") from None
