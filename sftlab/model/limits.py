"""Limits of an architecture that the data must not exceed, read from its config before any weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sftlab.data.ability import PlannedData

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


def limit_problems(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, data: PlannedData) -> list[str]:
    """Return warnings about data near a limit of the architecture.

    Raises:
        ValueError: A token id lies beyond the embedding, or an example beyond the learned positions.
    """
    text = config.get_text_config()
    tables = {name: ability.examples for name, ability in data.abilities.items() if not ability.is_declared}
    said, vocabulary = [], int(text.vocab_size)
    for name, table in tables.items():
        largest = table.largest_id
        if largest >= vocabulary:
            raise ValueError(
                f"data.abilities.{name}: token id {largest:,} ({tokenizer.convert_ids_to_tokens(largest)!r}) lies "
                f"beyond the model's embedding of {vocabulary:,} tokens: the tokenizer ({len(tokenizer):,} tokens) is "
                "not this model's, or the model was not resized for it"
            )
    if len(tokenizer) > vocabulary:
        said.append(
            f"The tokenizer has {len(tokenizer):,} tokens, the model's embedding {vocabulary:,}: those beyond it "
            "cannot be used."
        )
    longest = max((int(table.lengths_N.max()) for table in tables.values() if len(table)), default=0)
    positions = getattr(text, "max_position_embeddings", None)
    if positions and longest > positions:
        if has_position_table(config, positions):
            raise ValueError(
                f"data.max_length: an example of {longest:,} tokens lies beyond the {positions:,} positions that "
                f"{config.model_type} has learned; set data.max_length to {positions} or less"
            )
        said.append(
            f"The longest example has {longest:,} tokens, the model was made for {positions:,} positions: what it does "
            "beyond them was not learned."
        )
    return said


def has_position_table(config: PretrainedConfig, positions: int) -> bool:
    """Return whether an architecture looks positions up in a table of that many rows, learned or computed."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    tables = [
        (name, module.num_embeddings) for name, module in model.named_modules() if hasattr(module, "num_embeddings")
    ]
    tables += [(name, buffer.shape[0]) for name, buffer in model.named_buffers() if buffer.dim() > 1]
    words = ("pos", "wpe")
    return any(word in name for name, size in tables if positions <= size <= positions + 2 for word in words)


def unscaled_positions(config: PretrainedConfig) -> float:
    """Return the number of tokens up to which dynamic and long RoPE do not depend on the rest of the batch."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") not in ("dynamic", "longrope"):
        return float("inf")
    own = getattr(text, "original_max_position_embeddings", None)
    return int(rope.get("original_max_position_embeddings") or own or text.max_position_embeddings)
