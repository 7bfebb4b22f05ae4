"""Training stops at the first gradient or weight that is not finite, and says which examples were in the step."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sftlab.callbacks.context import RunContext
from sftlab.files import write_text

DIVERGED = "diverged.json"  # in a run's folder: the step at which training stopped, and its examples
_SHOWN = 5  # uids in the message


def gradient_norm(module: nn.Module) -> float:
    """The norm of all gradients together, over all shards; nan where one is nan."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return 0.0
    return float(_whole(torch.nn.utils.get_total_norm(gradients)))


def stop_at_gradient(context: RunContext, norm: float) -> None:
    """Stop before a step whose gradients are not finite changes the weights.

    Raises:
        ValueError: They are not: with the step and the uids of its examples.
    """
    if not math.isfinite(norm):
        raise ValueError(_diverged(context, context.step, f"the norm of its gradients is {norm}"))


def stop_at_weights(context: RunContext) -> None:
    """Stop before weights that are not finite are exported.

    Raises:
        ValueError: Some are not.
    """
    for name, parameter in context.module.named_parameters():
        sums = parameter.detach().float().abs().sum(dtype=torch.float64)  # not finite where one of them is not
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
        f"training diverged in optimizer step {step + 1}: {what}. Nothing of it is exported. The step's examples: "
        f"{', '.join(uids[:_SHOWN])}{more} ({path}). Lower model.learning_rate, or look at these examples"
    )
