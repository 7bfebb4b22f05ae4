"""The plan: a schedule compiled into integers before any tensor exists.

    stages     |------------- 0: code+math -------------|------------ 1: general+replay -----------|
    steps      | 0 | 1 | 2 | ...                        | s | s+1 | ...                            |
    rows       |r r r|r r|r r r| ...                      one step = the rows between two step starts
    examples   |e e e|e|e e| ...                          one row  = the examples between two row starts

The dry run, exact resume, the loss denominators and the ledger all read it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.plan.packing import pack
from sftlab.plan.policy import MixturePolicy
from sftlab.plan.pool import Pool, seed_from
from sftlab.plan.stage import Stage, StepSize


@dataclass(frozen=True, eq=False)
class StagePlan:
    """One stage of a plan.

    Attributes:
        stage: What was asked for.
        first_step: Its first optimizer step, counted over the run.
        num_steps: Its optimizer steps.
        num_epochs: Passes over its mixture, the last one perhaps in part.
        selected: Distinct examples of each ability that its fractions select.
        per_epoch: Examples of each ability in one epoch; above ``selected`` they repeat.
        requested: The share of each ability that the policy asked for, counted in ``counted_in``.
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
        """One past its last optimizer step."""
        return self.first_step + self.num_steps


@dataclass(frozen=True, eq=False)
class Plan:
    """Which example in which row of which optimizer step.

    Legend: N examples known, E examples in training order (with repeats), R rows, S steps, A abilities.

    Attributes:
        abilities: Names, sorted; ability numbers are positions in it.
        stages: In the order of training.
        batch: What a step holds.
        max_length: Tokens that a row holds.
        ability_N: Ability number of each example.
        index_N: Position of each example in its ability's source.
        uids_N: Content hash of each example.
        lengths_N: Tokens of each example.
        supervised_N: Trained tokens of each example.
        example_E: The examples in the order of training.
        row_starts_R1: Row r holds ``example_E[row_starts_R1[r]:row_starts_R1[r + 1]]``.
        step_starts_S1: Step s holds the rows from ``step_starts_S1[s]`` to ``step_starts_S1[s + 1]``.
        declared: Lengths are placeholders; the plan can be printed, not trained.
        populations: Examples of each ability before any fraction.
    """

    abilities: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    batch: StepSize
    max_length: int
    ability_N: np.ndarray
    index_N: np.ndarray
    uids_N: np.ndarray
    lengths_N: np.ndarray
    supervised_N: np.ndarray
    example_E: np.ndarray
    row_starts_R1: np.ndarray
    step_starts_S1: np.ndarray
    declared: bool
    populations: dict[str, int]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.step_starts_S1) - 1

    @property
    def boundaries(self) -> list[int]:
        """The step after each stage's last, in order."""
        return [stage.end_step for stage in self.stages]

    def rows(self, step: int) -> list[np.ndarray]:
        """The rows of a step, each an array of example numbers."""
        first, end = self.step_starts_S1[step], self.step_starts_S1[step + 1]
        return [self.example_E[self.row_starts_R1[r] : self.row_starts_R1[r + 1]] for r in range(first, end)]

    def example_span(self, first_step: int, end_step: int) -> slice:
        """Where the examples of the steps [first_step, end_step) stand in ``example_E``."""
        first, end = self.step_starts_S1[first_step], self.step_starts_S1[end_step]
        return slice(int(self.row_starts_R1[first]), int(self.row_starts_R1[end]))

    def stage_index(self, step: int) -> int:
        """Number of the stage that trains ``step``; the last stage's at the end of the plan."""
        return min(sum(step >= end for end in self.boundaries), len(self.stages) - 1)

    def _per_step(self, weights_E: np.ndarray) -> np.ndarray:
        """Sums by step and ability [S, A] of one weight per example in training order."""
        counts_S = np.diff(self.row_starts_R1[self.step_starts_S1])
        step_E = np.repeat(np.arange(self.num_steps), counts_S)
        cell_E = step_E * len(self.abilities) + self.ability_N[self.example_E]
        sums = np.bincount(cell_E, weights_E, minlength=self.num_steps * len(self.abilities))
        return sums.astype(np.int64).reshape(self.num_steps, len(self.abilities))

    def supervised_SA(self) -> np.ndarray:
        """Supervised tokens of each step and ability: the loss denominators, known in advance."""
        return self._per_step(self.supervised_N[self.example_E].astype(np.float64))

    def examples_SA(self) -> np.ndarray:
        """Examples of each step and ability."""
        return self._per_step(np.ones(len(self.example_E)))

    def fill(self, first_step: int = 0, end_step: int | None = None) -> float:
        """Part of the rows' room that holds tokens, over the steps [first_step, end_step)."""
        end_step = self.num_steps if end_step is None else end_step
        num_rows = int(self.step_starts_S1[end_step] - self.step_starts_S1[first_step])
        tokens = int(self.lengths_N[self.example_E[self.example_span(first_step, end_step)]].sum())
        return tokens / (num_rows * self.max_length) if num_rows else 0.0

    def fingerprint(self) -> str:
        """Hash of what would be trained and when: equal plans train the same examples in the same steps."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\n".join(self.uids_N[self.example_E].tolist()).encode())
        for array in (self.ability_N[self.example_E], self.row_starts_R1, self.step_starts_S1):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        digest.update(repr((self.abilities, self.boundaries, self.max_length)).encode())
        return digest.hexdigest()


def compile_plan(
    pools: Sequence[Pool],
    stages: Sequence[Stage],
    policy: MixturePolicy,
    batch: StepSize,
    max_length: int,
    seed: int = 0,
) -> Plan:
    """Compile stages over pools into a plan: a pure function of its arguments.

    Args:
        pools: One per ability, ranked.
        stages: In the order of training; their abilities must be among the pools.
        policy: Mixes the stages that name no policy of their own.
        batch: What one optimizer step holds.
        max_length: Tokens in a packed row.
        seed: Orders the examples; subsets are chosen by the pools' own ranking.

    Raises:
        ValueError: A stage names an unknown ability, shares a name with another, or has nothing to train.
    """
    by_name = {pool.ability: pool for pool in sorted(pools, key=lambda pool: pool.ability)}
    _check_stages(stages, by_name)
    offsets = dict(zip(by_name, np.cumsum([0, *map(len, by_name.values())]).tolist(), strict=False))
    compiler = _Compiler(by_name, offsets, batch, max_length, seed)
    stage_plans = tuple(compiler.add(stage, stage.policy or policy) for stage in stages)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)

    return Plan(
        abilities=tuple(by_name),
        stages=stage_plans,
        batch=batch,
        max_length=max_length,
        ability_N=np.repeat(np.arange(len(by_name)), [len(pool) for pool in by_name.values()]),
        index_N=joined([pool.index_N for pool in by_name.values()]),
        uids_N=joined([pool.uids_N for pool in by_name.values()]),
        lengths_N=joined([pool.lengths_N for pool in by_name.values()]),
        supervised_N=joined([pool.supervised_N for pool in by_name.values()]),
        example_E=np.array(compiler.examples, dtype=np.int64),
        row_starts_R1=np.cumsum([0, *compiler.row_sizes]),
        step_starts_S1=np.cumsum([0, *compiler.step_sizes]),
        declared=any(pool.declared for pool in pools),
        populations={name: pool.population for name, pool in by_name.items()},
    )


def _check_stages(stages: Sequence[Stage], pools: dict[str, Pool]) -> None:
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError(f"schedule: stages need names of their own, at least one (got {names})")
    for stage in stages:
        unknown = sorted(set(stage.fractions) - set(pools))
        if unknown:
            raise ValueError(f"stage {stage.name!r}: no ability named {unknown}; the data has {sorted(pools)}")


class _Compiler:
    """Appends stages to flat lists of examples, row sizes and step sizes."""

    def __init__(self, pools: dict[str, Pool], offsets: dict[str, int], batch: StepSize, max_length: int, seed: int):
        self.pools, self.offsets, self.batch, self.max_length, self.seed = pools, offsets, batch, max_length, seed
        self.examples: list[int] = []
        self.row_sizes: list[int] = []
        self.step_sizes: list[int] = []

    def add(self, stage: Stage, policy: MixturePolicy) -> StagePlan:
        """Append one stage."""
        pools = [self.pools[name].fraction(fraction) for name, fraction in sorted(stage.fractions.items())]
        present = [pool for pool in pools if len(pool)]
        per_epoch = policy.counts(present)
        if not any(per_epoch.values()):
            sizes = {pool.ability: f"{len(pool)} of {len(self.pools[pool.ability])}" for pool in pools}
            raise ValueError(
                f"stage {stage.name!r}: {type(policy).__name__} leaves nothing to train; its fractions select {sizes} "
                "examples: raise a fraction or give more data"
            )
        first_step, num_epochs, supervised = len(self.step_sizes), 0.0, 0
        while (part := self._next_epoch_part(stage, num_epochs, first_step, supervised)) > 0:
            example_E = self._epoch(stage, present, per_epoch, policy.resample, int(num_epochs))
            steps = self._steps(example_E[: max(1, math.floor(part * len(example_E) + 1e-9))], stage, int(num_epochs))
            taken, supervised = self._take(steps, present, stage, first_step, supervised)
            num_epochs += part * taken / len(steps)
        return StagePlan(
            stage,
            first_step,
            len(self.step_sizes) - first_step,
            num_epochs,
            {pool.ability: len(pool) for pool in pools},
            {pool.ability: per_epoch.get(pool.ability, 0) for pool in pools},
            {**{pool.ability: 0.0 for pool in pools}, **policy.shares(present)},
            policy.counted_in,
        )

    def _next_epoch_part(self, stage: Stage, num_epochs: float, first_step: int, supervised: int) -> float:
        """How much of another epoch the budget allows: 1, a part, or 0 when it is spent."""
        if stage.epochs is not None:
            return min(1.0, stage.epochs - num_epochs) if stage.epochs - num_epochs > 1e-9 else 0.0
        if stage.steps is not None:
            return float(len(self.step_sizes) - first_step < stage.steps)
        return float(supervised < (stage.supervised_tokens or 0))

    def _epoch(
        self, stage: Stage, pools: Sequence[Pool], per_epoch: dict[str, int], resample: bool, epoch: int
    ) -> np.ndarray:
        """The examples of one epoch, shuffled; the shuffle's seed is made of names."""
        chosen = []
        for pool in pools:
            count = per_epoch[pool.ability]
            first = epoch * count if resample else 0
            chosen.append(self.offsets[pool.ability] + (first + np.arange(count)) % len(pool))
        rng = np.random.default_rng(seed_from("shuffle", self.seed, stage.name, epoch))
        return rng.permutation(np.concatenate(chosen))

    def _steps(self, example_E: np.ndarray, stage: Stage, epoch: int) -> list[list[np.ndarray]]:
        """One epoch's examples as steps of packed rows; the last step holds what is left."""
        lengths_N = np.concatenate([pool.lengths_N for pool in self.pools.values()])
        if self.batch.examples is not None:
            size = self.batch.examples
            groups = [example_E[i : i + size] for i in range(0, len(example_E), size)]
            return [[group[row] for row in pack(lengths_N[group].tolist(), self.max_length)] for group in groups]
        rows = [example_E[row] for row in pack(lengths_N[example_E].tolist(), self.max_length)]
        rng = np.random.default_rng(seed_from("rows", self.seed, stage.name, epoch))
        rows = [rows[i] for i in rng.permutation(len(rows))]
        size = self.batch.rows or 1
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _take(
        self, steps: list[list[np.ndarray]], pools: Sequence[Pool], stage: Stage, first_step: int, supervised: int
    ) -> tuple[int, int]:
        """Append steps until the budget is spent; returns how many were taken and the supervised tokens so far."""
        supervised_N = np.concatenate([pool.supervised_N for pool in self.pools.values()])
        for taken, rows in enumerate(steps):
            if stage.steps is not None and len(self.step_sizes) - first_step >= stage.steps:
                return taken, supervised
            if stage.supervised_tokens is not None and supervised >= stage.supervised_tokens:
                return taken, supervised
            for row in rows:
                self.examples += row.tolist()
                self.row_sizes.append(len(row))
                supervised += int(supervised_N[row].sum())
            self.step_sizes.append(len(rows))
        return len(steps), supervised
