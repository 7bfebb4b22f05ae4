"""The ledger: what was really trained, per stage and ability, and in which steps each example was."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from sftlab.plan.plan import Plan, StagePlan


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

    def to_dict(self) -> dict[str, str | int | float]:
        """As JSON holds it."""
        return asdict(self)

    def share(self, unit: str) -> float:
        """The share counted in ``unit``."""
        return float(getattr(self, f"share_{unit}"))


def ledger(plan: Plan, num_steps: int | None = None) -> list[LedgerRow]:
    """What the first ``num_steps`` optimizer steps of a plan trained; all of it by default."""
    num_steps = plan.num_compiled_steps if num_steps is None else num_steps
    rows = []
    for stage in plan.stages:
        end = min(stage.end_step, num_steps)
        if end <= stage.first_step:
            continue
        example_E = plan.example_E[plan.example_span(stage.first_step, end)]
        sizes = {
            "examples": np.ones(len(example_E), dtype=np.int64),
            "tokens": plan.lengths_N[example_E],
            "supervised_tokens": plan.supervised_N[example_E],
        }
        totals = {unit: max(1, int(size.sum())) for unit, size in sizes.items()}
        for ability, selected in stage.selected.items():
            mine = plan.ability_N[example_E] == plan.abilities.index(ability)
            counts = {unit: int(size[mine].sum()) for unit, size in sizes.items()}
            rows.append(
                LedgerRow(
                    stage.stage.name,
                    ability,
                    distinct_examples=len(np.unique(example_E[mine])),
                    epochs=counts["examples"] / selected if selected else 0.0,
                    **counts,
                    share_examples=counts["examples"] / totals["examples"],
                    share_tokens=counts["tokens"] / totals["tokens"],
                    share_supervised_tokens=counts["supervised_tokens"] / totals["supervised_tokens"],
                )
            )
    return rows


def loss_shares(plan: Plan, stage: StagePlan, normalise: str = "token") -> dict[str, float]:
    """The part of the loss that each ability of a stage makes up, by its loss weights: the mean over compiled steps.

    Args:
        plan: The plan.
        stage: One of its stages.
        normalise: What counts the same in the loss of a step: token, example or ability.
    """
    end = min(stage.end_step, plan.num_compiled_steps)
    shares_A = np.zeros(len(plan.abilities))
    for step in range(stage.first_step, end):
        supervised_A = plan.supervised_A(step, step + 1)
        units_A = {"token": supervised_A, "example": plan.examples_A(step, step + 1)}.get(normalise, supervised_A > 0)
        parts_A = plan.loss_weights_A(step) * units_A
        shares_A += parts_A / (parts_A.sum() or 1.0)
    shares_A /= max(1, end - stage.first_step)
    return {name: float(shares_A[plan.abilities.index(name)]) for name in stage.selected}


def exposures(plan: Plan, num_steps: int | None = None) -> dict[str, list]:
    """Every exposure of every example as columns ``uid, ability, stage, step``, in the order of training."""
    num_steps = plan.num_compiled_steps if num_steps is None else num_steps
    example_E = plan.example_E[plan.example_span(0, num_steps)]
    counts_S = np.diff(plan.row_starts_R1[plan.step_starts_S1[: num_steps + 1]])
    step_E = np.repeat(np.arange(num_steps), counts_S)
    stage_names = np.array([stage.stage.name for stage in plan.stages], dtype=object)
    return {
        "uid": plan.uids_N[example_E].tolist(),
        "ability": np.array(plan.abilities, dtype=object)[plan.ability_N[example_E]].tolist(),
        "stage": stage_names[np.searchsorted(plan.boundaries, step_E, side="right")].tolist(),
        "step": step_E.tolist(),
    }
