"""Activation checkpointing: what the backward pass recomputes instead of keeping.

    false       keeps everything
    selective   keeps what matrix products and attention gave; norms, activation functions and rotations, which are
                large and cheap, are computed again
    true        keeps what goes into each layer; its forward pass is made again, a third more time

Results are equal bit for bit: the same operations run on the same inputs, dropout with the same random state.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

Recompute = bool | Literal["selective"]
CHOICES = (False, "selective", True)
_PRODUCTS = ("aten::mm", "aten::addmm")  # batches are excluded: scores of length x length in an eager attention


def recompute(model: PreTrainedModel, how: Recompute) -> None:
    """Make a model's layers recompute activations."""
    if not how:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    # Older releases of transformers have only the old name; newer ones warn about it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Decide whether the output of an operation of the forward pass is kept."""
    name = str(operation.name())
    is_dear = name in _PRODUCTS or "attention" in name or "attn" in name
    is_kept = is_dear and not _draws(operation, args, kwargs)
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _draws(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether it is dropout: skipping it in the backward pass would shift all later random numbers."""
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    for place, argument in enumerate(operation._schema.arguments):
        if "dropout" in argument.name:
            return bool(kwargs.get(argument.name, args[place] if place < len(args) else argument.default_value))
    return False
