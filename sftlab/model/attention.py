"""Attention over packed rows: one causal attention per example, and which implementations a machine has.

``per_document`` runs PyTorch's causal scaled-dot-product attention over each example by itself, so no mask is built and
nothing is computed across examples. A dense block mask costs 13 % at rows of 1,024 tokens on a CPU; a forgotten length
list is an error here, not a leak.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

PER_DOCUMENT = "per_document"


def per_document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_lengths: list[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention inside each example of one flat row.

    Args:
        module: The attention layer that calls.
        query: [1, heads, tokens, head size].
        key: [1, key-value heads, tokens, head size].
        value: Like ``key``.
        attention_mask: Must be None: the lengths define the mask.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores; one over the root of the head size by default.
        document_lengths: Tokens of each example, in order; they sum to ``tokens``.
        sliding_window: Must be None or no shorter than the longest example.
        softcap: Must be None.
        s_aux: Must be None.

    Returns:
        [1, tokens, heads, head size] and None for the weights.

    Raises:
        ValueError: No lengths were passed, or the architecture wants more than plain causal attention.
    """
    if document_lengths is None or attention_mask is not None:
        raise ValueError("per_document attention needs document_lengths and no attention_mask")
    if softcap is not None or s_aux is not None or (sliding_window or 2**62) < max(document_lengths):
        raise ValueError("this architecture's attention is not plain causal: set model.attention to sdpa or eager")
    dtype = query.dtype
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # In bf16 the backward pass over short examples is three times slower on a CPU than in fp32, casts included.
    query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        parts = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
            for q, k, v in zip(
                query.split(document_lengths, 2),
                key.split(document_lengths, 2),
                value.split(document_lengths, 2),
                strict=True,
            )
        ]
    return torch.cat(parts, 2).transpose(1, 2).to(dtype).contiguous(), None


def register_attention() -> None:
    """Register ``per_document`` with transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_DOCUMENT, per_document_attention)


def attentions_to_try(device: torch.device) -> list[str]:
    """Return the candidates of ``auto``, the fastest first; the first that keeps examples apart is chosen."""
    from transformers.utils import is_flash_attn_2_available

    if device.type == "cpu":
        return [PER_DOCUMENT, "sdpa", "eager"]
    return [*(["flash_attention_2"] if is_flash_attn_2_available() else []), "sdpa", "eager"]
