"""Measures what an optimizer keeps for each weight, by running one step on a small model."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from sftlab.model.optim import BETAS, build_optimizer

HIDDEN, OUTER, VECTOR = "matrix of a layer", "embedding or head", "vector"
# bitsandbytes runs only on GPUs: two moments of a byte, and a 4-byte scale for each block of 256 in either.
_EIGHT_BITS = {HIDDEN: 2 + 2 * 4 / 256, OUTER: 2 + 2 * 4 / 256, VECTOR: 8.0}
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def kinds(net: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """Return the trained weights, and which kind of weight each is to an optimizer."""
    outer = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for module in net.modules():
        if (get_head := getattr(module, "get_output_embeddings", None)) and (head := cast(Any, get_head)()) is not None:
            outer |= {id(p) for p in head.parameters()}
    for p in net.parameters():
        if p.requires_grad:
            yield p, VECTOR if p.ndim < 2 else OUTER if id(p) in outer else HIDDEN


def kept_bytes(choice: Mapping[str, Any] | None, dtype: torch.dtype) -> dict[str, float]:
    """Measure the bytes that an optimizer keeps per element of a weight, by kind.

    Args:
        choice: As returned by ``chosen_optimizer``; None is AdamW.
        dtype: Type of the weights.

    Raises:
        ValueError: It refuses its arguments, or cannot make a step from gradients alone.
    """
    return dict(_kept_bytes(json.dumps(choice, sort_keys=True, default=str), dtype))


@functools.cache
def _kept_bytes(chosen: str, dtype: torch.dtype) -> dict[str, float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    choice = json.loads(chosen)
    if choice is not None and choice["class_path"].startswith("bitsandbytes"):
        return _EIGHT_BITS if "8bit" in choice["class_path"] else dict.fromkeys(_EIGHT_BITS, 8.0)
    model = LlamaForCausalLM(LlamaConfig(**_SMALL, vocab_size=128, tie_word_embeddings=True)).to(dtype)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, choice, 0.0, BETAS)
    if hasattr(optimizer, "train"):  # schedule-free optimizers have two modes
        optimizer.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    try:
        optimizer.step()
    except (TypeError, RuntimeError) as error:
        name = type(optimizer).__name__
        raise ValueError(f"model.optimizer: {name} makes no step by gradients alone ({error})") from error
    numbers, sizes = dict.fromkeys(_EIGHT_BITS, 0), dict.fromkeys(_EIGHT_BITS, 0)
    for p, kind in kinds(model):
        numbers[kind] += p.numel()
        held = [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor) and value.numel() > 1]
        sizes[kind] += sum(value.numel() * value.element_size() for value in held)
    return {kind: sizes[kind] / numbers[kind] for kind in numbers}
