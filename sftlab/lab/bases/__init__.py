"""The bases that ship with the package, small LLaMAs that have read the lab's text and none of its fine-tuning data.

And the shapes of models that start from random weights instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Attention heads that copy form sooner from larger first weights than LLaMA's 0.02, which is for wider matrices.
_SHAPE = {"max_position_embeddings": 1024, "tie_word_embeddings": True, "initializer_range": 0.05}
BASE_SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 48,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **_SHAPE,
    },
    "base": {
        "hidden_size": 80,
        "intermediate_size": 208,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **_SHAPE,
    },
    "large": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        **_SHAPE,
    },
}
# From random weights: larger, as all is still to be learned.
LAB_SIZES: dict[str, dict[str, Any]] = {
    "lab-small": {
        "hidden_size": 128,
        "intermediate_size": 336,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **_SHAPE,
    },
    "lab-base": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        **_SHAPE,
    },
    "lab-large": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        **_SHAPE,
    },
}
LAB_BASES = tuple(f"lab:{size}" for size in BASE_SHAPES)
FOLDER = Path(__file__).parent


def base_folder(name: str) -> Path:
    """The folder of a base, such as ``lab:small``.

    Raises:
        ValueError: There is no base of that name, or it has still to be made.
    """
    if name not in LAB_BASES:
        raise ValueError(f"model.path: {name!r} is not a base of the lab; there are {', '.join(LAB_BASES)}")
    size = name.removeprefix("lab:")
    if not (FOLDER / size / "config.json").is_file():
        raise ValueError(f"model.path: {name!r} does not ship yet; make it with tools/make_lab_bases --sizes {size}")
    return FOLDER / size
