"""Compiles stages into segments of a plan: epochs are mixed, shuffled and packed until the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sftlab.plan.curriculum import in_order
from sftlab.plan.packing import pack_groups
from sftlab.plan.plan import Plan, Segment, StagePlan
from sftlab.plan.policy import MixturePolicy, Proportional
from sftlab.plan.pool import Pool, seed_from
from sftlab.plan.stage import Stage, StepSize
from sftlab.plan.uids import Uids, index_type

RULES = 1  # version of how pools become plans (ranks, policies, packing, curricula): raise it when plans change


def compile_plan(
    pools: Sequence[Pool],
    stages: Sequence[Stage],
    policy: MixturePolicy,
    batch: StepSize,
    max_length: int,
    seed: int = 0,
    packing: bool = True,
) -> Plan:
    """Compile stages over pools into a plan, one segment per stage. A pure function of its arguments.

    Args:
        pools: One per ability, ranked.
        stages: In the order of training; their abilities must be among the pools.
        policy: Mixes the stages that name no policy of their own.
        batch: What one optimizer step holds.
        max_length: Tokens in a packed row.
        seed: Orders the examples; subsets are chosen by the pools' own ranking.
        packing: Examples share rows; otherwise each has one of its own.

    Raises:
        ValueError: A stage names an unknown ability, shares a name with another, or has nothing to train.
    """
    compiler = Compiler(pools, policy, batch, max_length, seed, packing)
    check_stages(compiler, stages)
    for stage in stages:
        compiler.append(stage)
    compiler.plan.is_open = False
    return compiler.plan


def one_pass(name: str, pool: Pool, num_rows: int, max_length: int, packing: bool = True) -> Plan:
    """Compile a plan that passes once over a pool with ``num_rows`` rows per step; ``name`` seeds their order."""
    stage = Stage(name, {pool.ability: 1.0}, epochs=1)
    return compile_plan([pool], [stage], Proportional(), StepSize(rows=num_rows), max_length, packing=packing)


def check_stages(compiler: Compiler, stages: Sequence[Stage]) -> None:
    """Check that stages have distinct names and fit the data.

    Raises:
        ValueError: They do not.
    """
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError(f"schedule: stages need names of their own, at least one (got {names})")
    for stage in stages:
        compiler.check(stage)


class Compiler:
    """Compiles stages into segments of a plan, which starts empty and open.

    Args:
        pools: One per ability, ranked.
        policy: Mixes the stages that name no policy of their own.
        batch: What one optimizer step holds.
        max_length: Tokens in a packed row.
        seed: Orders the examples; subsets are chosen by the pools' own ranking.
        packing: Examples share rows; otherwise each has one of its own.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        policy: MixturePolicy,
        batch: StepSize,
        max_length: int,
        seed: int = 0,
        packing: bool = True,
    ) -> None:
        by_name = {pool.ability: pool for pool in sorted(pools, key=lambda pool: pool.ability)}
        self._offsets = dict(zip(by_name, np.cumsum([0, *map(len, by_name.values())]).tolist(), strict=False))
        self._policy, self._seed = policy, seed

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

        self.plan = Plan(
            abilities=tuple(by_name),
            batch=batch,
            max_length=max_length,
            packing=packing,
            ability_N=np.repeat(np.arange(len(by_name), dtype=np.int16), [len(pool) for pool in by_name.values()]),
            index_N=joined([pool.index_N for pool in by_name.values()]),
            uids_N=Uids.joined([pool.uids_N for pool in by_name.values()]),
            lengths_N=joined([pool.lengths_N for pool in by_name.values()]),
            supervised_N=joined([pool.supervised_N for pool in by_name.values()]),
            declared=any(pool.declared for pool in pools),
            populations={name: pool.population for name, pool in by_name.items()},
            losses_N=_losses(list(by_name.values())),
        )
        self._pools = {name: self._shared(pool) for name, pool in by_name.items()}

    def _shared(self, pool: Pool) -> Pool:
        """Return a pool whose arrays are part of the plan's, so that each exists once."""
        mine, plan = slice(start := self._offsets[pool.ability], start + len(pool)), self.plan
        return replace(
            pool,
            index_N=plan.index_N[mine],
            uids_N=plan.uids_N[mine],
            lengths_N=plan.lengths_N[mine],
            supervised_N=plan.supervised_N[mine],
        )

    def check(self, stage: Stage) -> None:
        """Check that the pools have the abilities of a stage and that its curriculum fits the batch.

        Raises:
            ValueError: They do not.
        """
        unknown = sorted(set(stage.fractions) - set(self._pools))
        if unknown:
            raise ValueError(f"stage {stage.name!r}: no ability named {unknown}; the data has {sorted(self._pools)}")
        if stage.curriculum != "shuffled" and self.plan.batch.rows is not None and stage.epochs is None:
            raise ValueError(
                f"stage {stage.name!r}: curriculum {stage.curriculum} with data.batch.rows needs a budget of epochs: "
                "in order, examples fill other rows than shuffled. Or use data.batch.examples"
            )

    def selected(self, stage: Stage) -> dict[str, int]:
        """Return the number of examples of each ability that a stage's fractions select."""
        return {pool.ability: len(pool) for pool in self.pools_of(stage)}

    def mean_lengths(self, stage: Stage) -> dict[str, float]:
        """Return the mean length in tokens of these examples, by ability."""
        return {pool.ability: pool.total("tokens") / len(pool) for pool in self.pools_of(stage) if len(pool)}

    def pools_of(self, stage: Stage) -> list[Pool]:
        """Return the pools that a stage's fractions select, sorted by name."""
        unit = stage.counted_in
        return [self._pools[name].fraction(fraction, unit) for name, fraction in sorted(stage.fractions.items())]

    def append(self, stage: Stage, stage_steps: int = 0, whole: Stage | None = None) -> Segment:
        """Compile a segment and append it to the plan.

        Later segments of a stage prefer the examples that the stage has trained least, steps that were given up left
        out; a segment with a budget of one epoch trains exactly the counts of its policy.

        Args:
            stage: What the segment trains; its budget is that of the segment.
            stage_steps: Number of steps of the whole stage, if more segments of it follow.
            whole: The stage that the segment is part of, if that has another budget or policy.

        Raises:
            ValueError: It has nothing to train, or names an unknown ability.
        """
        self.check(stage)
        pools = self.pools_of(stage)
        part = _Part(self.plan, pools, self._offsets, stage, stage.policy or self._policy, self._seed)
        planned = part.compile()
        steps = _Steps.joined(part.taken)
        if whole is not None:
            passes = len(steps.example_E) / max(1, sum(planned.selected.values()))
            planned = replace(planned, stage=whole, num_epochs=passes)
        segment = Segment(planned, steps.example_E, _starts(steps.sizes_R), _starts(steps.rows_S), stage_steps)
        self.plan.append(segment)
        return segment


@dataclass(frozen=True, eq=False)
class _Steps:
    """Optimizer steps as flat arrays.

    Attributes:
        example_E: Their examples, row after row.
        sizes_R: Examples of each row.
        rows_S: Rows of each step.
    """

    example_E: np.ndarray
    sizes_R: np.ndarray
    rows_S: np.ndarray

    def __len__(self) -> int:
        return len(self.rows_S)

    @classmethod
    def joined(cls, parts: Sequence[_Steps]) -> _Steps:
        """Concatenate several."""
        if len(parts) == 1:
            return parts[0]
        arrays = zip(*((part.example_E, part.sizes_R, part.rows_S) for part in parts), strict=True)
        return cls(*map(np.concatenate, arrays)) if parts else cls(*[np.empty(0, dtype=np.int64)] * 3)

    def first(self, count: int) -> _Steps:
        """Return the first ``count`` steps."""
        if count >= len(self):
            return self
        sizes_R = self.sizes_R[: self.rows_S[:count].sum()]
        return _Steps(self.example_E[: sizes_R.sum()], sizes_R, self.rows_S[:count])

    def sums_S(self, of_N: np.ndarray) -> np.ndarray:
        """Sum a per-example number over the examples of each step."""
        ends_E = np.concatenate([[0], np.cumsum(of_N[self.example_E])])
        return np.diff(ends_E[_starts(self.sizes_R)[_starts(self.rows_S)]])


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Return where each part starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


class _Part:
    """One segment: passes over a mixture, as steps, until the budget is spent."""

    def __init__(
        self,
        plan: Plan,
        pools: list[Pool],
        offsets: dict[str, int],
        stage: Stage,
        policy: MixturePolicy,
        seed: int,
    ) -> None:
        self.plan, self.pools, self.offsets, self.stage, self.policy = plan, pools, offsets, stage, policy
        before = [segment for segment in plan.segments if segment.planned.stage.name == stage.name]
        self.seed_names: tuple[object, ...] = (seed, stage.name, *(["segment", len(before)] if before else []))
        self.trained_N: np.ndarray | None = None
        if before:
            given_up_S = plan.given_up_S()
            known = [segment.example_E for segment in before if not given_up_S[segment.planned.first_step]]
            trained_E = np.concatenate([np.empty(0, dtype=np.int64), *known])
            self.trained_N = np.bincount(trained_E, minlength=len(plan.uids_N))
        self.taken: list[_Steps] = []
        self.num_steps, self.index_type = 0, index_type(len(plan.uids_N))

    def compile(self) -> StagePlan:
        """Take epoch after epoch until the budget is spent."""
        stage, policy = self.stage, self.policy
        pools = self.pools
        present = [pool for pool in pools if len(pool)]
        per_epoch = policy.counts(present)
        if not any(per_epoch.values()):
            sizes = {pool.ability: f"{len(pool)} of {pool.population}" for pool in pools}
            raise ValueError(
                f"stage {stage.name!r}: {type(policy).__name__} leaves nothing to train; its fractions select {sizes} "
                "examples: raise a fraction or give more data"
            )
        num_epochs, supervised = 0.0, 0
        while (part := self._next_epoch_part(num_epochs, supervised)) > 0:
            example_E = self._epoch(present, per_epoch, int(num_epochs))
            example_E = example_E[: max(1, math.floor(part * len(example_E) + 1e-9))]
            steps = self._steps(example_E, int(num_epochs))
            taken = self._num_affordable(steps, supervised)
            num_epochs += part * taken / len(steps)
            if stage.curriculum != "shuffled":  # the examples that the budget allows, independent of their order
                steps = self._ordered(example_E[: len(steps.first(taken).example_E)])
                taken = len(steps)
            self.taken.append(steps.first(taken))
            self.num_steps += taken
            supervised += int(self.plan.supervised_N[self.taken[-1].example_E].sum())
        return StagePlan(
            stage,
            self.plan.num_compiled_steps,
            self.num_steps,
            num_epochs,
            {pool.ability: len(pool) for pool in pools},
            {pool.ability: per_epoch.get(pool.ability, 0) for pool in pools},
            {**{pool.ability: 0.0 for pool in pools}, **policy.shares(present)},
            policy.counted_in,
        )

    def _next_epoch_part(self, num_epochs: float, supervised: int) -> float:
        """Return how much of another epoch the budget allows: 1, a part, or 0 when it is spent."""
        if self.stage.epochs is not None:
            return min(1.0, self.stage.epochs - num_epochs) if self.stage.epochs - num_epochs > 1e-9 else 0.0
        if self.stage.steps is not None:
            return float(self.num_steps < self.stage.steps)
        return float(supervised < (self.stage.supervised_tokens or 0))

    def _epoch(self, pools: Sequence[Pool], per_epoch: dict[str, int], epoch: int) -> np.ndarray:
        """Return the examples of one epoch, shuffled; the shuffle's seed is made of names."""
        chosen = []
        for pool in pools:
            count = per_epoch[pool.ability]
            first, offset = epoch * count if self.policy.resample else 0, self.offsets[pool.ability]
            place_M = np.arange(first, first + count, dtype=self.index_type) % len(pool)
            if self.trained_N is not None:
                place_M = np.argsort(self.trained_N[offset : offset + len(pool)], kind="stable")[place_M]
            chosen.append((offset + place_M).astype(self.index_type, copy=False))
        rng = np.random.default_rng(seed_from("shuffle", *self.seed_names, epoch))
        return rng.permutation(np.concatenate(chosen))

    def _steps(self, example_E: np.ndarray, epoch: int) -> _Steps:
        """Return one epoch's examples as steps of packed rows; the last step holds what is left."""
        if self.plan.batch.examples is not None:
            return self._in_groups(example_E, self.plan.batch.examples)
        steps = self._in_groups(example_E, len(example_E))
        rng = np.random.default_rng(seed_from("rows", *self.seed_names, epoch))
        row_R = rng.permutation(len(steps.sizes_R))
        sizes_R, starts_R1 = steps.sizes_R[row_R], _starts(steps.sizes_R)
        moved_E = np.repeat((starts_R1[row_R] - _starts(sizes_R)[:-1]).astype(self.index_type), sizes_R)
        moved_E += np.arange(len(moved_E), dtype=self.index_type)
        size, num_rows = self.plan.batch.rows or 1, len(sizes_R)
        rows_S = np.diff([*range(0, num_rows, size), num_rows])
        return _Steps(steps.example_E[moved_E], sizes_R, rows_S)

    def _in_groups(self, example_E: np.ndarray, size: int) -> _Steps:
        """Return examples in their order as steps of ``size``, each packed on its own."""
        if not self.plan.packing:
            rows_S = np.diff([*range(0, len(example_E), size), len(example_E)])
            return _Steps(example_E, np.ones(len(example_E), dtype=np.int64), rows_S)
        rows = pack_groups(self.plan.lengths_N[example_E], size, self.plan.max_length)
        return _Steps(example_E[rows.item_E], rows.sizes_R, rows.rows_G)

    def _ordered(self, example_E: np.ndarray) -> _Steps:
        """Return shuffled examples as steps in the order of the stage's curriculum."""
        plan, batch = self.plan, self.plan.batch
        blocks = np.zeros(len(plan.abilities), dtype=np.int64)
        for place, name in enumerate(self.stage.fractions):
            blocks[plan.abilities.index(name)] = place
        losses_E = None if plan.losses_N is None else plan.losses_N[example_E]
        ranks_E = blocks[plan.ability_N[example_E]]
        example_E = in_order(example_E, self.stage.curriculum, plan.lengths_N[example_E], losses_E, ranks_E)
        if batch.examples is not None:
            return self._in_groups(example_E, batch.examples)
        return self._full_steps(example_E, batch.rows or 1)

    def _full_steps(self, example_E: np.ndarray, num_rows: int) -> _Steps:
        """Return examples in their order as steps of at most ``num_rows`` rows, each as long as they fit."""
        ends_E, found, start = np.cumsum(self.plan.lengths_N[example_E]), list[_Steps](), 0
        while start < len(example_E):
            room = num_rows * self.plan.max_length + (ends_E[start - 1] if start else 0)
            end = max(start + 1, int(np.searchsorted(ends_E, room, side="right")))
            while len((step := self._in_groups(example_E[start:end], end - start)).sizes_R) > num_rows:
                end -= max(1, (end - start) // 50)
            found.append(step)
            start = end
        return _Steps.joined(found)

    def _num_affordable(self, steps: _Steps, supervised: int) -> int:
        """Return how many steps the budget allows, after a number of supervised tokens."""
        stage, affordable = self.stage, len(steps)
        if stage.steps is not None:
            affordable = min(affordable, stage.steps - self.num_steps)
        if stage.supervised_tokens is not None:  # a step begins as long as they are not reached
            before_S = supervised + _starts(steps.sums_S(self.plan.supervised_N))[:-1]
            affordable = min(affordable, int(np.searchsorted(before_S, stage.supervised_tokens, side="left")))
        return affordable


def _losses(pools: list[Pool]) -> np.ndarray | None:
    """Return the base's losses of all pools' examples; nan for an ability whose pool has none."""
    if all(pool.losses_N is None for pool in pools):
        return None
    return np.concatenate([np.full(len(p), np.nan) if p.losses_N is None else p.losses_N for p in pools])
