"""The groups of weights that analyses distinguish: embeddings, each decoder block, head."""

from __future__ import annotations

import re

ALL = "all"
EMBEDDINGS, HEAD = "embeddings", "head"
WORDS = "Head: the last norm and, where they are not tied to the embeddings, the output weights."
"""For captions."""
_BLOCK = re.compile(r"\.(\d+)\.")
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe|tok_embeddings|embed_(tokens|in|positions)|\w*embeddings?)\.")


def group_of(name: str) -> str:
    """Return the group of a weight by its name in a Hugging Face model: embeddings, layer-00 and so on, or head.

    What is neither in a block nor an embedding is the head: the last norm and the output weights. Where these are tied
    to the embeddings they are one weight, and it counts as embeddings.
    """
    if block := _BLOCK.search(name):
        return f"layer-{int(block[1]):02d}"
    return EMBEDDINGS if _EMBEDDING.search(name) else HEAD


def in_order(groups: set[str]) -> list[str]:
    """Order groups from the input to the output, ``ALL`` first."""
    place = {ALL: 0, EMBEDDINGS: 1, HEAD: 3}
    return sorted(groups, key=lambda group: (place.get(group, 2), len(group), group))
