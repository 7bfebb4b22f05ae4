"""What an adaptive stage sees of the run, and where its decisions are told: decisions.jsonl, metrics, a line each."""

from __future__ import annotations

import json

import torch

from sftlab.callbacks.context import RunContext
from sftlab.data.ability import PlannedData
from sftlab.files import write_text
from sftlab.plan.adapt import Adaptation
from sftlab.plan.plan import Plan
from sftlab.screen import show

ADAPTATION = "sftlab_adaptation"  # of a checkpoint
DECISIONS_FILE = "decisions.jsonl"  # in a run's folder


def decides_by_validation(plan: Plan) -> bool:
    """Whether the last stage of a plan is validated at the end of each segment."""
    adaptive = plan.stages[-1].stage.adaptive
    return adaptive is not None and adaptive.needs_validation


def check_held_out(plan: Plan, data: PlannedData) -> None:
    """Whether an adaptive stage that decides by held-out examples has some of each ability.

    Raises:
        ValueError: It has not.
    """
    stage = plan.stages[-1].stage
    if decides_by_validation(plan) and (missing := sorted(set(stage.fractions) - set(data.val_abilities()))):
        raise ValueError(
            f"stage {stage.name!r}: {type(stage.adaptive).__name__} decides by held-out examples, and {missing} have "
            "none: set val_fraction of these abilities"
        )


class Observer:
    """Sums what each step of an adaptive stage shows, over micro-batches and ranks.

    Args:
        context: The run.
        adaptation: Gets the sums; whoever observes before a checkpoint is written has them in it.
    """

    def __init__(self, context: RunContext, adaptation: Adaptation) -> None:
        self._context, self._adaptation = context, adaptation
        self._nll_A: torch.Tensor | None = None

    def on_train_batch_end(self, nll_A: torch.Tensor, batch_idx: int) -> None:
        """Add a micro-batch; at a step's end reduce over ranks, so that all of them see the same."""
        context = self._context
        self._nll_A = nll_A.clone() if self._nll_A is None else self._nll_A + nll_A
        if not context.ends_step(batch_idx):
            return
        total_A, self._nll_A = self._nll_A, None
        if context.step <= self._adaptation.first_step:
            return
        if context.trainer.world_size > 1:
            total_A = context.trainer.strategy.reduce(total_A, reduce_op="sum")  # type: ignore[assignment]
        self._adaptation.observe_step(total_A.tolist())

    def on_validation_end(self) -> None:
        """Note held-out losses at a segment's end."""
        if self._context.step == self._context.plan.num_compiled_steps:
            self._adaptation.observe_validation(self._context.module.val_losses)


def decide(context: RunContext, adaptation: Adaptation) -> None:
    """Decide about the next segment, the same on every rank, and tell it."""
    known = len(adaptation.decisions)
    adaptation.extend(context.trainer.strategy.broadcast)
    if len(adaptation.decisions) == known:
        return
    write_decisions(context, adaptation)
    shares = adaptation.decisions[-1].shares
    context.log({f"decision/share/{name}": share for name, share in shares.items()})
    if context.trainer.is_global_zero:
        words = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        show(f"Decision {known} after step {context.step:,}: {words}")


def write_decisions(context: RunContext, adaptation: Adaptation) -> None:
    """Write all decisions, one a line; those of steps that are trained again are gone with the steps."""
    if context.trainer.is_global_zero:
        lines = "".join(json.dumps(decision.to_dict()) + "\n" for decision in adaptation.decisions)
        context.folder.mkdir(parents=True, exist_ok=True)
        write_text(context.folder / DECISIONS_FILE, lines)
