"""Checks of SFTModule's arguments, before any weight is loaded."""

from __future__ import annotations

from typing import Any

from sftlab.bounds import within
from sftlab.lab.bases import LAB_SIZES
from sftlab.model.backbone import ATTENTIONS
from sftlab.model.compiled import check_attention
from sftlab.model.optim import BETAS
from sftlab.model.recompute import CHOICES, Recompute
from sftlab.plan.stage import check_learning_rate


def check_computing(
    attention: str, activation_checkpointing: Recompute, is_compiled: bool, chunk_tokens: int | None
) -> None:
    """Refuse invalid values, and combinations that do not work, of what never changes a step.

    Raises:
        ValueError: A value is invalid, or compiling does not go with the attention.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"model.attention: {attention!r} is not one of {', '.join(ATTENTIONS)}")
    if activation_checkpointing not in CHOICES:
        raise ValueError(
            f"model.activation_checkpointing: {activation_checkpointing!r} is not false, selective or true"
        )
    if is_compiled:
        check_attention(attention)
    if chunk_tokens is not None:
        within("model.chunk_tokens", chunk_tokens, 1, is_whole=True)


def check_from_scratch(path: str | None, tokenizer: str | None) -> None:
    """Refuse options that do not go with ``config``.

    Raises:
        ValueError: There is no tokenizer, or a path to weights that would not be used.
    """
    if tokenizer is None:
        raise ValueError("model.config: a model from scratch needs model.tokenizer, a folder or hub id")
    if path not in (None, *LAB_SIZES):
        raise ValueError(
            f"model.path: {path!r} and model.config are both there; config makes a LLaMA from scratch, and the weights "
            "at path would not be used: give path: null, or leave config out"
        )


def check_rate(learning_rate: float, warmup_ratio: float, warmup_steps: int | None) -> None:
    """Check learning rate and warm-up.

    Raises:
        ValueError: A value is out of bounds.
    """
    check_learning_rate("model.learning_rate", learning_rate)
    within("model.warmup_ratio", warmup_ratio, 0, 1)
    if warmup_steps is not None:
        within("model.warmup_steps", warmup_steps, 0, 10**9, is_whole=True)


def check_optimizer(optimizer: dict[str, Any] | str | None, weight_decay: float, betas: tuple[float, float]) -> None:
    """Check the optimizer's numbers; its class and other arguments are checked where it is chosen.

    Raises:
        ValueError: A value is out of bounds, or betas are given for another optimizer than the default.
    """
    within("model.weight_decay", weight_decay, 0, 1e6)
    for beta in betas:
        within("model.betas", beta, 0, 1)
    if optimizer is not None and tuple(betas) != BETAS:
        raise ValueError("model.betas: of the default AdamW; give them in model.optimizer.init_args")
