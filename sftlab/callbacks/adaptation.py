"""What an adaptive stage observes of the run, and where its decisions appear: decisions.jsonl, metrics, the screen."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.segment_states import SegmentStates
from sftlab.data.ability import PlannedData
from sftlab.files import write_text
from sftlab.plan.adapt import Adaptation
from sftlab.plan.adaptive import Decision
from sftlab.plan.plan import Plan
from sftlab.screen import show

ADAPTATION = "sftlab_adaptation"  # of a checkpoint
DECISIONS_FILE = "decisions.jsonl"  # in a run's folder


def decides_by_validation(plan: Plan) -> bool:
    """Return whether the plan's last stage is validated at the end of each segment, where it may end."""
    adaptive = plan.stages[-1].stage.adaptive
    return adaptive is not None and (adaptive.needs_validation or adaptive.may_return)


def check_held_out(plan: Plan, data: PlannedData, trainer: Trainer) -> None:
    """Check that an adaptive stage which decides by held-out examples has some of each ability and validates on them.

    Raises:
        ValueError: An ability has no held-out examples, or nothing is validated.
    """
    stage = plan.stages[-1].stage
    policy = stage.adaptive
    if policy is None or not policy.needs_validation:
        return
    if not trainer.limit_val_batches:
        raise ValueError(
            f"trainer.limit_val_batches: 0 validates nothing, and {type(policy).__name__} decides stage "
            f"{stage.name!r} by held-out losses; leave it out"
        )
    if missing := sorted({*stage.fractions, *policy.looks_at} - set(data.val_abilities())):
        raise ValueError(
            f"stage {stage.name!r}: {type(policy).__name__} decides by held-out examples, and {missing} have "
            "none: set val_fraction of these abilities"
        )


def check_returns(plan: Plan, keep_best: str | None, average_last_n_steps: int | None, trainer: Trainer) -> None:
    """Check that a policy which may return to earlier weights is the only one to choose a stage's final weights.

    EarlyStopping also chooses them: it may end the stage during a probe, with weights that would be discarded.

    Raises:
        ValueError: Another option or callback chooses them too.
    """
    adaptive = plan.stages[-1].stage.adaptive
    given = {"schedule.keep_best": keep_best, "schedule.average_last_n_steps": average_last_n_steps}
    both = [name for name, value in given.items() if value is not None]
    stoppers = [one for one in cast(Any, trainer).callbacks if isinstance(one, EarlyStopping)]
    both += [f"trainer.callbacks: {type(one).__name__}" for one in stoppers]
    if adaptive is not None and adaptive.may_return and both:
        raise ValueError(
            f"{both[0]}: {type(adaptive).__name__} may return to earlier weights, so it chooses the weights that "
            f"the stage ends with; leave {re.split('[.: ]+', both[0])[-1]} out"
        )


class Observer:
    """Sums what each step of an adaptive stage observes, over micro-batches and ranks.

    Args:
        context: The run.
        adaptation: Receives the sums before a checkpoint of the step is written, so that the checkpoint holds them.
    """

    def __init__(self, context: RunContext, adaptation: Adaptation) -> None:
        self._context, self._adaptation = context, adaptation
        self._nll_A: torch.Tensor | None = None

    def on_train_batch_end(self, nll_A: torch.Tensor, batch_idx: int) -> None:
        """Add a micro-batch; at a step's end reduce over ranks, so that all ranks see the same sums."""
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
        """Record the held-out losses at a segment's end.

        Raises:
            ValueError: One that is to be decided by is not finite.
        """
        context, losses = self._context, self._context.module.val_losses
        if context.step <= self._adaptation.first_step or context.step != context.plan.num_compiled_steps:
            return
        wrong = [f"{name} is {loss}" for name, loss in sorted(losses.items()) if not math.isfinite(loss)]
        if wrong and self._adaptation.policy.needs_validation:
            raise ValueError(
                f"{type(self._adaptation.policy).__name__} decides by held-out losses, and after step {context.step:,} "
                f"that of {', '.join(wrong)}: lower model.learning_rate, or look at its held-out examples"
            )
        self._adaptation.observe_validation(losses)


def decide(context: RunContext, adaptation: Adaptation, states: SegmentStates) -> None:
    """Decide the next segment, the same on every rank, restore the state it starts from, and print the decision."""
    known = len(adaptation.decisions)
    adaptation.extend(context.trainer.strategy.broadcast)
    if len(adaptation.decisions) == known:
        return
    states.follow(adaptation.decisions)
    write_decisions(context, adaptation)
    decision = adaptation.decisions[-1]
    metrics = {f"decision/share/{name}": share for name, share in decision.shares.items()}
    if decision.return_to is not None:
        metrics["decision/return_to"] = float(decision.return_to)
    context.log(metrics)
    if context.trainer.is_global_zero:
        show(f"Decision {known} after step {context.step:,}: {_in_words(decision)}")


def _in_words(decision: Decision) -> str:
    parts = [", ".join(f"{name} {share:.1%}" for name, share in decision.shares.items()) or "the stage ends"]
    if decision.return_to is not None:
        parts.insert(0, f"returned to the state after step {decision.return_to:,}")
    if decision.num_steps is not None:
        parts[-1] += f", for {decision.num_steps:,} steps"
    return "; ".join(parts)


def write_decisions(context: RunContext, adaptation: Adaptation) -> None:
    """Write all decisions, one per line; those of steps that will be trained again are dropped."""
    if context.trainer.is_global_zero:
        lines = "".join(json.dumps(decision.to_dict()) + "\n" for decision in adaptation.decisions)
        context.folder.mkdir(parents=True, exist_ok=True)
        write_text(context.folder / DECISIONS_FILE, lines)
