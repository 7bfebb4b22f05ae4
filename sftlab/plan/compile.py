"""Stages become segments of a plan: epochs are mixed, shuffled and packed until the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sftlab.plan.curriculum import in_order
from sftlab.plan.packing import pack
from sftlab.plan.plan import Plan, Segment, StagePlan
from sftlab.plan.policy import MixturePolicy
from sftlab.plan.pool import Pool, seed_from
from sftlab.plan.stage import Stage, StepSize


def compile_plan(
    pools: Sequence[Pool],
    stages: Sequence[Stage],
    policy: MixturePolicy,
    batch: StepSize,
    max_length: int,
    seed: int = 0,
    packing: bool = True,
) -> Plan:
    """Compile stages over pools into a plan, a segment each: a pure function of its arguments.

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


def check_stages(compiler: Compiler, stages: Sequence[Stage]) -> None:
    """Whether stages go together and with the data.

    Raises:
        ValueError: They do not.
    """
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError(f"schedule: stages need names of their own, at least one (got {names})")
    for stage in stages:
        compiler.check(stage)


class Compiler:
    """Compiles segments over pools, one after another, into a plan that starts empty and open.

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
        self._pools, self._policy, self._seed = by_name, policy, seed

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)

        self.plan = Plan(
            abilities=tuple(by_name),
            batch=batch,
            max_length=max_length,
            packing=packing,
            ability_N=np.repeat(np.arange(len(by_name)), [len(pool) for pool in by_name.values()]),
            index_N=joined([pool.index_N for pool in by_name.values()]),
            uids_N=joined([pool.uids_N for pool in by_name.values()]),
            lengths_N=joined([pool.lengths_N for pool in by_name.values()]),
            supervised_N=joined([pool.supervised_N for pool in by_name.values()]),
            declared=any(pool.declared for pool in pools),
            populations={name: pool.population for name, pool in by_name.items()},
            losses_N=_losses(list(by_name.values())),
        )

    def check(self, stage: Stage) -> None:
        """Whether the pools have the abilities of a stage.

        Raises:
            ValueError: They have not.
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
        """Examples of each ability that a stage's fractions select."""
        return {pool.ability: len(pool) for pool in self.pools_of(stage)}

    def mean_lengths(self, stage: Stage) -> dict[str, float]:
        """Mean tokens of the examples of each ability that a stage's fractions select."""
        return {pool.ability: pool.total("tokens") / len(pool) for pool in self.pools_of(stage) if len(pool)}

    def pools_of(self, stage: Stage) -> list[Pool]:
        """What a stage's fractions select, by name."""
        unit = stage.counted_in
        return [self._pools[name].fraction(fraction, unit) for name, fraction in sorted(stage.fractions.items())]

    def append(self, stage: Stage, stage_steps: int = 0, whole: Stage | None = None) -> Segment:
        """Compile a segment and append it to the plan.

        A further segment of a stage prefers the examples that the stage has trained least; a segment whose budget is
        one epoch trains exactly the counts of its policy.

        Args:
            stage: What the segment trains; its budget is the segment's.
            stage_steps: Steps that the stage will have in all, where more segments of it follow.
            whole: The stage that it is a part of, where that has another budget or policy.

        Raises:
            ValueError: It has nothing to train, or names an unknown ability.
        """
        self.check(stage)
        pools = self.pools_of(stage)
        part = _Part(self.plan, pools, self._offsets, stage, stage.policy or self._policy, self._seed)
        planned = part.compile()
        if whole is not None:
            passes = len(part.examples) / max(1, sum(planned.selected.values()))
            planned = replace(planned, stage=whole, num_epochs=passes)
        rows, steps = np.cumsum([0, *part.row_sizes]), np.cumsum([0, *part.step_sizes])
        segment = Segment(planned, np.array(part.examples, dtype=np.int64), rows, steps, stage_steps)
        self.plan.append(segment)
        return segment


class _Part:
    """One segment as flat lists of examples, row sizes and step sizes."""

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
        trained_E = np.concatenate([np.empty(0, dtype=np.int64), *(segment.example_E for segment in before)])
        self.trained_N = np.bincount(trained_E, minlength=len(plan.uids_N))
        self.examples: list[int] = []
        self.row_sizes: list[int] = []
        self.step_sizes: list[int] = []

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
            if stage.curriculum != "shuffled":  # the examples that the budget allows, whatever their order
                count = sum(len(row) for rows in steps[:taken] for row in rows)
                steps = self._ordered(example_E[:count])
                taken = len(steps)
            supervised += self._take(steps[:taken])
        return StagePlan(
            stage,
            self.plan.num_compiled_steps,
            len(self.step_sizes),
            num_epochs,
            {pool.ability: len(pool) for pool in pools},
            {pool.ability: per_epoch.get(pool.ability, 0) for pool in pools},
            {**{pool.ability: 0.0 for pool in pools}, **policy.shares(present)},
            policy.counted_in,
        )

    def _next_epoch_part(self, num_epochs: float, supervised: int) -> float:
        """How much of another epoch the budget allows: 1, a part, or 0 when it is spent."""
        if self.stage.epochs is not None:
            return min(1.0, self.stage.epochs - num_epochs) if self.stage.epochs - num_epochs > 1e-9 else 0.0
        if self.stage.steps is not None:
            return float(len(self.step_sizes) < self.stage.steps)
        return float(supervised < (self.stage.supervised_tokens or 0))

    def _epoch(self, pools: Sequence[Pool], per_epoch: dict[str, int], epoch: int) -> np.ndarray:
        """The examples of one epoch, shuffled; the shuffle's seed is made of names."""
        chosen = []
        for pool in pools:
            count = per_epoch[pool.ability]
            first, offset = epoch * count if self.policy.resample else 0, self.offsets[pool.ability]
            least_trained = np.argsort(self.trained_N[offset : offset + len(pool)], kind="stable")
            chosen.append(offset + least_trained[(first + np.arange(count)) % len(pool)])
        rng = np.random.default_rng(seed_from("shuffle", *self.seed_names, epoch))
        return rng.permutation(np.concatenate(chosen))

    def _steps(self, example_E: np.ndarray, epoch: int) -> list[list[np.ndarray]]:
        """One epoch's examples as steps of packed rows; the last step holds what is left."""
        batch = self.plan.batch
        if batch.examples is not None:
            size = batch.examples
            groups = [example_E[i : i + size] for i in range(0, len(example_E), size)]
            return [self._rows(group) for group in groups]
        rows = self._rows(example_E)
        rng = np.random.default_rng(seed_from("rows", *self.seed_names, epoch))
        rows = [rows[i] for i in rng.permutation(len(rows))]
        size = batch.rows or 1
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _rows(self, example_E: np.ndarray) -> list[np.ndarray]:
        """Some examples as rows."""
        if not self.plan.packing:
            return list(example_E[:, None])
        rows = pack(self.plan.lengths_N[example_E].tolist(), self.plan.max_length)
        return [example_E[row] for row in rows]

    def _ordered(self, example_E: np.ndarray) -> list[list[np.ndarray]]:
        """Shuffled examples as steps in the order of the stage's curriculum."""
        plan, batch = self.plan, self.plan.batch
        blocks = np.zeros(len(plan.abilities), dtype=np.int64)
        for place, name in enumerate(self.stage.fractions):
            blocks[plan.abilities.index(name)] = place
        losses_E = None if plan.losses_N is None else plan.losses_N[example_E]
        ranks_E = blocks[plan.ability_N[example_E]]
        example_E = in_order(example_E, self.stage.curriculum, plan.lengths_N[example_E], losses_E, ranks_E)
        if batch.examples is not None:
            return [self._rows(example_E[i : i + batch.examples]) for i in range(0, len(example_E), batch.examples)]
        return self._full_steps(example_E, batch.rows or 1)

    def _full_steps(self, example_E: np.ndarray, num_rows: int) -> list[list[np.ndarray]]:
        """Examples in their order as steps of at most ``num_rows`` rows, each as long as they fit."""
        ends_E, found, start = np.cumsum(self.plan.lengths_N[example_E]), [], 0
        while start < len(example_E):
            room = num_rows * self.plan.max_length + (ends_E[start - 1] if start else 0)
            end = max(start + 1, int(np.searchsorted(ends_E, room, side="right")))
            while len(rows := self._rows(example_E[start:end])) > num_rows:
                end -= max(1, (end - start) // 50)
            found.append(rows)
            start = end
        return found

    def _num_affordable(self, steps: list[list[np.ndarray]], supervised: int) -> int:
        """How many of some steps the budget allows, after a number of supervised tokens."""
        stage = self.stage
        for taken, rows in enumerate(steps):
            if stage.steps is not None and len(self.step_sizes) + taken >= stage.steps:
                return taken
            if stage.supervised_tokens is not None and supervised >= stage.supervised_tokens:
                return taken
            supervised += self._supervised(rows)
        return len(steps)

    def _take(self, steps: list[list[np.ndarray]]) -> int:
        """Append steps; returns their supervised tokens."""
        for rows in steps:
            for row in rows:
                self.examples += row.tolist()
                self.row_sizes.append(len(row))
            self.step_sizes.append(len(rows))
        return sum(self._supervised(rows) for rows in steps)

    def _supervised(self, rows: list[np.ndarray]) -> int:
        return sum(int(self.plan.supervised_N[row].sum()) for row in rows)


def _losses(pools: list[Pool]) -> np.ndarray | None:
    """The base's losses of all pools' examples; not known of an ability whose pool has none."""
    if all(pool.losses_N is None for pool in pools):
        return None
    return np.concatenate([np.full(len(p), np.nan) if p.losses_N is None else p.losses_N for p in pools])
