"""The plan: a schedule compiled into integers before any tensor exists.

    stages     |------------- 0: code+math -------------|------------ 1: general+replay -----------|
    steps      | 0 | 1 | 2 | ...                        | s | s+1 | ...                            |
    rows       |r r r|r r|r r r| ...                      one step = the rows between two step starts
    examples   |e e e|e|e e| ...                          one row  = the examples between two row starts

A plan is a list of segments, each compiled at once and never changed. A fixed schedule has one segment per stage; an
adaptive one compiles the next segment from its observations, so callers must query a step when it comes.

The dry run, exact resume, the loss denominators and the ledger all read the plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from sftlab.plan.stage import Stage, StepSize
from sftlab.plan.uids import Uids

_HASHED_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class StagePlan:
    """One stage of a plan.

    Attributes:
        stage: The stage as declared.
        first_step: Its first optimizer step, counted over the run.
        num_steps: Number of its optimizer steps.
        num_epochs: Passes over its mixture; the last one may be partial.
        selected: Number of distinct examples of each ability that its fractions select.
        per_epoch: Examples of each ability in one epoch; more than ``selected`` means repeats.
        requested: The share of each ability that the policy requested, counted in ``counted_in``.
        counted_in: What ``requested`` counts.
    """

    stage: Stage
    first_step: int
    num_steps: int
    num_epochs: float
    selected: dict[str, int]
    per_epoch: dict[str, int]
    requested: dict[str, float]
    counted_in: str

    @property
    def end_step(self) -> int:
        """One after its last optimizer step."""
        return self.first_step + self.num_steps


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a plan that is compiled at once and never changed.

    Attributes:
        planned: The part of its stage that it trains.
        example_E: Its examples in the order of training.
        row_starts_R1: Row r holds ``example_E[row_starts_R1[r]:row_starts_R1[r + 1]]``.
        step_starts_S1: Step s holds the rows from ``step_starts_S1[s]`` to ``step_starts_S1[s + 1]``.
        stage_steps: Number of steps of the whole stage if more segments of it follow; otherwise 0.
    """

    planned: StagePlan
    example_E: np.ndarray
    row_starts_R1: np.ndarray
    step_starts_S1: np.ndarray
    stage_steps: int = 0

    def until(self, num_steps: int) -> Segment:
        """The segment cut after ``num_steps`` steps, so that the stage ends there."""
        num_steps = min(num_steps, self.planned.num_steps)
        epochs = self.planned.num_epochs * num_steps / self.planned.num_steps
        steps_S1 = self.step_starts_S1[: num_steps + 1]
        rows_R1 = self.row_starts_R1[: steps_S1[-1] + 1]
        planned = replace(self.planned, num_steps=num_steps, num_epochs=epochs)
        return Segment(planned, self.example_E[: rows_R1[-1]], rows_R1, steps_S1)


@dataclass(eq=False)
class Plan:
    """Which example in which row of which optimizer step.

    Legend: N examples known, E examples in training order (with repeats), R rows, S steps, A abilities.

    Attributes:
        abilities: Names, sorted; ability numbers are positions in it.
        batch: What a step holds.
        max_length: Tokens that a row holds.
        packing: Whether examples share rows; otherwise each has a row of its own.
        ability_N: Ability number of each example.
        index_N: Position of each example in its ability's source.
        uids_N: Content hash of each example.
        lengths_N: Tokens of each example.
        supervised_N: Supervised tokens of each example.
        declared: Whether lengths are placeholders, so that the plan can be printed but not trained.
        populations: Number of examples of each ability before any fraction was taken.
        losses_N: The base's mean loss per supervised token of each example, if a curriculum needs it.
        is_open: Whether more segments may follow.
        returns: The steps after which the state of an earlier step was restored, each with that earlier step.
        segments: In the order of training; ``append`` adds to them.
        stages: In the order of training.
        example_E: The examples in the order of training.
        row_starts_R1: Row r holds ``example_E[row_starts_R1[r]:row_starts_R1[r + 1]]``.
        step_starts_S1: Step s holds the rows from ``step_starts_S1[s]`` to ``step_starts_S1[s + 1]``.
    """

    abilities: tuple[str, ...]
    batch: StepSize
    max_length: int
    packing: bool
    ability_N: np.ndarray
    index_N: np.ndarray
    uids_N: Uids
    lengths_N: np.ndarray
    supervised_N: np.ndarray
    declared: bool
    populations: dict[str, int]
    losses_N: np.ndarray | None = None
    is_open: bool = True
    returns: dict[int, int] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    stages: tuple[StagePlan, ...] = field(default=(), init=False)
    example_E: np.ndarray = field(init=False)
    row_starts_R1: np.ndarray = field(init=False)
    step_starts_S1: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Concatenate the segments."""
        self._join()

    def append(self, segment: Segment) -> None:
        """Append the segment that follows the last compiled step."""
        assert self.is_open, "a closed plan has all its segments"
        assert segment.planned.first_step == self.num_compiled_steps
        self.segments = (*self.segments, segment)
        self._join()

    def end_stage(self, step: int, ends_run: bool = False) -> None:
        """End the current stage before ``step``, as if it had been planned so.

        Args:
            step: The step after the stage's new last one.
            ends_run: Whether the stages after it are dropped; otherwise they follow at once.
        """
        stage, kept = self.stage_at(step - 1), []
        for segment in self.segments:
            planned = segment.planned
            if planned.first_step >= stage.end_step and ends_run:
                self.is_open = False
            elif planned.first_step >= stage.end_step:
                moved = replace(planned, first_step=planned.first_step - (stage.end_step - step))
                kept.append(replace(segment, planned=moved))
            elif planned.first_step < stage.first_step:
                kept.append(segment)
            elif planned.first_step < step:
                kept.append(segment.until(step - planned.first_step))
        self.segments = tuple(kept)
        self._join()

    def return_to(self, step: int) -> None:
        """Give up what was trained after ``step``: the next segment continues from there."""
        assert any(segment.planned.first_step + segment.planned.num_steps == step for segment in self.segments)
        self.returns[self.num_compiled_steps] = step

    def given_up_S(self, num_steps: int | None = None) -> np.ndarray:
        """Whether each of the first ``num_steps`` steps was given up, so that it has no effect on the final weights."""
        num_steps = self.num_compiled_steps if num_steps is None else num_steps
        given_up_S = np.ones(num_steps, dtype=bool)
        step = self.returns.get(num_steps, num_steps)
        while step:  # follow the history of the weights backwards
            begin = max((at for at in self.returns if at < step), default=0)
            given_up_S[begin:step] = False
            step = self.returns.get(begin, 0)
        return given_up_S

    def _join(self) -> None:
        def joined(starts: list[np.ndarray]) -> np.ndarray:
            sizes = [np.zeros(1, dtype=np.int64), *(np.diff(starts_1) for starts_1 in starts)]
            return np.cumsum(np.concatenate(sizes), dtype=np.int64)

        parts = [segment.example_E for segment in self.segments]
        self.example_E = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype=np.int32), *parts])
        self.row_starts_R1 = joined([segment.row_starts_R1 for segment in self.segments])
        self.step_starts_S1 = joined([segment.step_starts_S1 for segment in self.segments])
        ends = np.cumsum([len(part) for part in parts])[:-1]
        shared = np.split(self.example_E, ends) if parts else []  # views of one array, which exists once
        self.segments = tuple(replace(one, example_E=part) for one, part in zip(self.segments, shared, strict=True))
        by_stage = groupby(self.segments, key=lambda segment: segment.planned.stage.name)
        self.stages = tuple(_stage_of(list(segments)) for _, segments in by_stage)

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps of the run, as far as it is known."""
        return self.stages[-1].end_step if self.stages else 0

    @property
    def num_compiled_steps(self) -> int:
        """Number of optimizer steps whose examples are known: all steps of a fixed schedule."""
        return len(self.step_starts_S1) - 1

    @property
    def boundaries(self) -> list[int]:
        """The step after each stage's last, in order."""
        return [stage.end_step for stage in self.stages]

    def rows(self, step: int) -> list[np.ndarray]:
        """Return the rows of a step, each an array of example numbers (indices into the arrays [N])."""
        first, end = self.step_starts_S1[step], self.step_starts_S1[step + 1]
        return [self.example_E[self.row_starts_R1[r] : self.row_starts_R1[r + 1]] for r in range(first, end)]

    def example_span(self, first_step: int, end_step: int) -> slice:
        """Return the slice of ``example_E`` that holds the examples of the steps [first_step, end_step)."""
        first, end = self.step_starts_S1[first_step], self.step_starts_S1[end_step]
        return slice(int(self.row_starts_R1[first]), int(self.row_starts_R1[end]))

    def stage_index(self, step: int) -> int:
        """Index of the stage that trains ``step``; that of the last stage at the end of the plan."""
        return min(sum(step >= end for end in self.boundaries), len(self.stages) - 1)

    def stage_at(self, step: int) -> StagePlan:
        """The stage that trains ``step``; the last stage at the end of the plan."""
        return self.stages[self.stage_index(step)]

    def stage_ending_at(self, step: int) -> StagePlan | None:
        """The stage whose last step is the one before ``step``; None if no stage ends there."""
        return next((stage for stage in self.stages if stage.end_step == step), None)

    def examples_A(self, first_step: int, end_step: int) -> np.ndarray:
        """Number of examples of each ability in the steps [first_step, end_step)."""
        example_E = self.example_E[self.example_span(first_step, end_step)]
        return np.bincount(self.ability_N[example_E], minlength=len(self.abilities))

    def supervised_A(self, first_step: int, end_step: int) -> np.ndarray:
        """Supervised tokens of each ability in the steps [first_step, end_step); of one step, the loss denominators."""
        example_E = self.example_E[self.example_span(first_step, end_step)]
        sums = np.bincount(self.ability_N[example_E], self.supervised_N[example_E], minlength=len(self.abilities))
        return sums.astype(np.int64)

    def loss_weights_A(self, step: int) -> np.ndarray:
        """Relative weight of each ability's supervised tokens in the loss of a step, as declared by its stage."""
        stage = self.stage_at(step).stage
        return np.array([stage.loss_weight(ability) for ability in self.abilities])

    def num_tokens(self, first_step: int, end_step: int) -> int:
        """Number of tokens in the steps [first_step, end_step), without padding."""
        return int(self.lengths_N[self.example_E[self.example_span(first_step, end_step)]].sum())

    def fill(self, first_step: int = 0, end_step: int | None = None) -> float:
        """Packing fill of the steps [first_step, end_step): tokens over the capacity of their rows."""
        end_step = self.num_compiled_steps if end_step is None else end_step
        num_rows = int(self.step_starts_S1[end_step] - self.step_starts_S1[first_step])
        return self.num_tokens(first_step, end_step) / (num_rows * self.max_length) if num_rows else 0.0

    def fingerprint(self) -> str:
        """Hash what is trained when: plans with equal fingerprints train the same examples in the same steps."""
        digest = hashlib.blake2b(digest_size=16)
        self.uids_N[self.example_E].add_to(digest)
        for array in (self.ability_N[self.example_E], self.row_starts_R1, self.step_starts_S1):
            for start in range(0, len(array), _HASHED_AT_ONCE):
                digest.update(array[start : start + _HASHED_AT_ONCE].astype(np.int64).tobytes())
        digest.update(repr((self.abilities, self.boundaries, self.max_length)).encode())
        if self.returns:
            digest.update(repr(sorted(self.returns.items())).encode())
        return digest.hexdigest()


def _stage_of(segments: list[Segment]) -> StagePlan:
    """Return a stage as the sum of its segments."""
    first, last = segments[0].planned, segments[-1]
    if len(segments) == 1 and not last.stage_steps:
        return first
    parts = [segment.planned for segment in segments]
    compiled = sum(part.num_steps for part in parts)

    names = sorted({name for part in parts for name in part.selected})
    weights = [part.num_steps / compiled for part in parts]
    fractions = {name: max(part.stage.fractions.get(name, 0.0) for part in parts) for name in names}
    return replace(
        first,
        stage=replace(first.stage, fractions=fractions),
        num_steps=max(compiled, last.stage_steps),
        num_epochs=sum(part.num_epochs for part in parts),
        selected={name: max(part.selected.get(name, 0) for part in parts) for name in names},
        per_epoch={name: sum(part.per_epoch.get(name, 0) for part in parts) for name in names},
        requested={
            name: sum(weight * part.requested.get(name, 0.0) for weight, part in zip(weights, parts, strict=True))
            for name in names
        },
    )
