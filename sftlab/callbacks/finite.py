"""Stop training at the first gradient or weight that is not finite, and name the examples of the step."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sftlab.callbacks.context import RunContext
from sftlab.files import write_text
from sftlab.screen import show

DIVERGED = "diverged.json"  # in a run's folder: the step at which training stopped, and its examples
_SHOWN = 5  # uids in the message
_MOST_PASSED_OVER = 30  # steps in a row: the scale of the loss is then a billionth of what it was


def gradient_norm(module: nn.Module) -> float:
    """Return the norm of all gradients over all shards; nan if one of them is nan."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return 0.0
    return float(_whole(torch.nn.utils.get_total_norm(gradients)))


def stop_at_gradient(context: RunContext, norm: float) -> None:
    """Stop before gradients that are not finite change the weights.

    Raises:
        ValueError: They are not finite; the message names the step and its examples.
    """
    if not math.isfinite(norm):
        raise ValueError(_diverged(context, context.step, f"the norm of its gradients is {norm}"))


class ScaledSteps:
    """Steps under fp16's loss scaling, which skips steps whose gradients overflow and lowers its scale.

    Skipped steps are normal. A loss that is not finite, or endless overflow, is an error: nothing would be trained,
    without any message.
    """

    def __init__(self) -> None:
        self.num_passed_over = 0  # steps of the current stage that changed no weight
        self._in_a_row = 0
        self._loss: Any = 0.0

    def add(self, nll_A: torch.Tensor) -> None:
        """Add a micro-batch's losses."""
        self._loss = self._loss + nll_A.detach().sum()

    def look(self, context: RunContext, norm: float) -> None:
        """Stop at a step's end if training can no longer recover.

        Args:
            context: The run, this step done.
            norm: Of the step's gradients.

        Raises:
            ValueError: The loss is not finite, or too many steps in a row were passed over.
        """
        loss, self._loss = self._loss, 0.0
        if context.trainer.world_size > 1:
            loss = context.trainer.strategy.reduce(loss, reduce_op="sum")
        if not math.isfinite(float(loss)):
            raise ValueError(_diverged(context, context.step - 1, f"its loss is {float(loss)}"))
        self._in_a_row = 0 if math.isfinite(norm) else self._in_a_row + 1
        self.num_passed_over += self._in_a_row > 0
        if self._in_a_row == _MOST_PASSED_OVER:
            what = f"fp16 overflowed in {self._in_a_row} steps in a row, whatever the scale of the loss"
            raise ValueError(_diverged(context, context.step - 1, what))

    def tell(self, context: RunContext) -> None:
        """At a stage's end, report how many of its steps changed nothing."""
        if self.num_passed_over and context.trainer.is_global_zero:
            show(
                f"Stage {context.stage.stage.name}: {self.num_passed_over:,} steps changed no weight, their gradients "
                "overflowed in fp16 and its loss scale was lowered; bf16-mixed has no such steps."
            )
        self.num_passed_over = 0


def stop_at_weights(context: RunContext) -> None:
    """Stop before weights that are not finite are exported.

    Raises:
        ValueError: Some are not.
    """
    for name, parameter in context.module.named_parameters():
        sums = parameter.detach().float().abs().sum(dtype=torch.float64)  # not finite if one of them is not
        if not math.isfinite(float(_whole(sums))):
            raise ValueError(_diverged(context, context.step - 1, f"after it the weights {name} are not finite"))


def _whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _diverged(context: RunContext, step: int, what: str) -> str:
    plan, path = context.plan, context.folder / DIVERGED
    example_E = plan.example_E[plan.example_span(step, step + 1)]
    uids = plan.uids_N[example_E].tolist()
    abilities = [plan.abilities[number] for number in plan.ability_N[example_E]]
    if context.trainer.is_global_zero:
        examples = [{"uid": uid, "ability": ability} for uid, ability in zip(uids, abilities, strict=True)]
        write_text(path, json.dumps({"step": step + 1, "what": what, "examples": examples}, indent=1))
    more = f" and {len(uids) - _SHOWN} more" if len(uids) > _SHOWN else ""
    return (
        f"training diverged in optimizer step {step + 1}: {what}. Its weights are not exported. The step's examples: "
        f"{', '.join(uids[:_SHOWN])}{more} ({path}). Lower model.learning_rate, or look at these examples"
    )
