"""The ledger: what was really trained, per stage and ability, and the steps of each example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sftlab.plan.plan import Plan, StagePlan
from sftlab.plan.uids import Uids

_AT_ONCE = 1 << 18  # examples processed at once


@dataclass(frozen=True)
class LedgerRow:
    """What one stage trained of one ability.

    Attributes:
        stage: Name of the stage.
        ability: Name of the ability.
        examples: Examples trained, repeats counted.
        distinct_examples: Examples trained, each counted once.
        tokens: Tokens of those examples, repeats counted.
        supervised_tokens: Tokens of those examples that the loss saw.
        epochs: Passes over the examples that the stage selected.
        share_examples: Part of the stage's examples.
        share_tokens: Part of the stage's tokens.
        share_supervised_tokens: Part of the stage's supervised tokens.
        given_up_examples: Of ``examples``, those of steps that were given up: trained, and not in the weights.
        given_up_tokens: Of ``tokens``, those of such steps.
        given_up_supervised_tokens: Of ``supervised_tokens``, those of such steps.
    """

    stage: str
    ability: str
    examples: int
    distinct_examples: int
    tokens: int
    supervised_tokens: int
    epochs: float
    share_examples: float
    share_tokens: float
    share_supervised_tokens: float
    given_up_examples: int = 0
    given_up_tokens: int = 0
    given_up_supervised_tokens: int = 0

    def to_dict(self) -> dict[str, str | int | float]:
        """Return a dictionary for JSON."""
        return asdict(self)

    def share(self, unit: str) -> float:
        """Return the share counted in ``unit``."""
        return float(getattr(self, f"share_{unit}"))


def ledger(plan: Plan, num_steps: int | None = None) -> list[LedgerRow]:
    """Return what the first ``num_steps`` optimizer steps of a plan trained; all of them by default."""
    num_steps = plan.num_compiled_steps if num_steps is None else num_steps
    given_up_S, rows = plan.given_up_S(num_steps), []
    for stage in plan.stages:
        end = min(stage.end_step, num_steps)
        if end <= stage.first_step:
            continue
        counts_of, distinct = _counts(plan, stage, given_up_S[:end])
        units = ("examples", "tokens", "supervised_tokens")
        totals = {unit: max(1, sum(counts[unit] for counts in counts_of.values())) for unit in units}
        for ability, selected in stage.selected.items():
            counts = counts_of[ability]
            rows.append(
                LedgerRow(
                    stage.stage.name,
                    ability,
                    distinct_examples=distinct[ability],
                    epochs=counts["examples"] / selected if selected else 0.0,
                    **counts,
                    share_examples=counts["examples"] / totals["examples"],
                    share_tokens=counts["tokens"] / totals["tokens"],
                    share_supervised_tokens=counts["supervised_tokens"] / totals["supervised_tokens"],
                )
            )
    return rows


def trained_in_full(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return the abilities that each stage trains with all of their data: fraction 1, and used by the policy."""
    trained = {(row.stage, row.ability) for row in ledger(plan) if row.examples}
    stages = [planned.stage for planned in plan.stages]
    return {s.name: tuple(a for a in s.full_abilities if (s.name, a) in trained) for s in stages}


def _counts(plan: Plan, stage: StagePlan, given_up_S: np.ndarray) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Count what a stage has trained of each ability in these steps: examples, their sizes, distinct examples."""
    size, units = len(plan.abilities), ("examples", "tokens", "supervised_tokens")
    sums = {unit: np.zeros(size, dtype=np.int64) for unit in (*units, *(f"given_up_{unit}" for unit in units))}
    seen_N = np.zeros(len(plan.ability_N), dtype=bool)
    for first, end in _spans(given_up_S, stage.first_step):
        span, prefix = plan.example_span(first, end), "given_up_" if given_up_S[first] else ""
        for start in range(span.start, span.stop, _AT_ONCE):
            example_E = plan.example_E[start : min(start + _AT_ONCE, span.stop)]
            ability_E, seen_N[example_E] = plan.ability_N[example_E], True
            sizes = (None, plan.lengths_N[example_E], plan.supervised_N[example_E])
            for unit, size_E in zip(units, sizes, strict=True):
                sum_A = np.bincount(ability_E, size_E, minlength=size).astype(np.int64)
                for name in {unit, prefix + unit}:
                    sums[name] += sum_A
    counts, distinct = dict[str, dict[str, int]](), dict[str, int]()
    for ability in stage.selected:
        number = plan.abilities.index(ability)
        counts[ability] = {unit: int(sum_A[number]) for unit, sum_A in sums.items()}
        distinct[ability] = int(np.count_nonzero(seen_N & (plan.ability_N == number)))
    return counts, distinct


def _spans(given_up_S: np.ndarray, first_step: int) -> list[tuple[int, int]]:
    """Return the runs of given-up steps from ``first_step`` on, and the runs between them."""
    changes = first_step + 1 + np.flatnonzero(np.diff(given_up_S[first_step:]))
    bounds = [first_step, *changes.tolist(), len(given_up_S)]
    return list(pairwise(bounds))


def loss_shares(plan: Plan, stage: StagePlan, normalise: str = "token") -> dict[str, float]:
    """Compute each ability's part of a stage's loss, by its loss weights: the mean over compiled steps.

    Args:
        plan: The plan.
        stage: One of its stages.
        normalise: What has equal weight in the loss of a step: token, example or ability.
    """
    end = min(stage.end_step, plan.num_compiled_steps)
    example_E = plan.example_E[plan.example_span(stage.first_step, end)]
    cell_E = plan.ability_N[example_E] + len(plan.abilities) * (
        _steps_E(plan, stage.first_step, end) - stage.first_step
    )
    shape = (end - stage.first_step, len(plan.abilities))
    supervised_E = None if normalise == "example" else plan.supervised_N[example_E]
    units_SA = np.bincount(cell_E, supervised_E, minlength=shape[0] * shape[1]).reshape(shape)
    parts_SA = np.array([stage.stage.loss_weight(ability) for ability in plan.abilities]) * (
        units_SA > 0 if normalise == "ability" else units_SA
    )
    sums_S = parts_SA.sum(axis=1, keepdims=True)
    shares_A = (parts_SA / np.where(sums_S, sums_S, 1.0)).sum(axis=0) / max(1, shape[0])
    return {name: float(shares_A[plan.abilities.index(name)]) for name in stage.selected}


class Exposures(NamedTuple):
    """Exposures of examples in the order of training.

    Attributes:
        uids_E: The examples.
        ability_E: Their abilities, as numbers.
        stage_E: The stages, as numbers.
        step_E: The optimizer steps.
        given_up_E: Whether the steps were given up and so have no effect on the final weights.
    """

    uids_E: Uids
    ability_E: np.ndarray
    stage_E: np.ndarray
    step_E: np.ndarray
    given_up_E: np.ndarray


def exposures(plan: Plan, num_steps: int | None = None, at_once: int = _AT_ONCE) -> Iterator[Exposures]:
    """Yield every exposure of every example in the order of training, about ``at_once`` at a time, at least a step."""
    num_steps = plan.num_compiled_steps if num_steps is None else num_steps
    ends_S1, given_up_S = plan.row_starts_R1[plan.step_starts_S1[: num_steps + 1]], plan.given_up_S(num_steps)
    first = 0
    while first < num_steps:
        end = max(first + 1, int(np.searchsorted(ends_S1, ends_S1[first] + at_once, side="right")) - 1)
        example_E, step_E = plan.example_E[plan.example_span(first, end)], _steps_E(plan, first, end)
        stage_E = np.searchsorted(plan.boundaries, step_E, side="right")
        yield Exposures(plan.uids_N[example_E], plan.ability_N[example_E], stage_E, step_E, given_up_S[step_E])
        first = end


def _steps_E(plan: Plan, first_step: int, end_step: int) -> np.ndarray:
    """Return the step of each example that the steps [first_step, end_step) train."""
    counts_S = np.diff(plan.row_starts_R1[plan.step_starts_S1[first_step : end_step + 1]])
    return np.repeat(np.arange(first_step, end_step), counts_S)
