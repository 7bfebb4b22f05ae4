"""Rewrites a Hugging Face folder: weights of another type, files of another size, another card."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from sftlab.files import copy_folder, whole_folder
from sftlab.model.contents import ADAPTER

DTYPES = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def rewrite_folder(
    source: Path, folder: Path, card: str, dtype: str | None = None, max_shard_size: str | None = None
) -> None:
    """Write a copy of a folder.

    Args:
        source: A folder with weights in safetensors.
        folder: The copy; appears when complete.
        card: Its README.md.
        dtype: float32, bf16 or fp16, for the floating-point weights; None keeps theirs.
        max_shard_size: Largest size of a weight file, such as 5GB; None keeps the files.

    Raises:
        ValueError: There are no weights in safetensors.
    """
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ValueError(f"--checkpoint: {source} holds no weights as safetensors")
    with whole_folder(folder) as partial:
        kept = _WEIGHTS if dtype is not None or max_shard_size is not None else ()
        copy_folder(source, partial, ("README.md", *kept))
        if kept:
            _write_weights(files, partial, dtype, max_shard_size)
        config = partial / "config.json"
        if dtype is not None and config.is_file():
            content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": DTYPES[dtype]}
            config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")


def _write_weights(files: list[Path], folder: Path, dtype: str | None, max_shard_size: str | None) -> None:
    import torch

    from sftlab.model.weights import MAX_FILE_BYTES, WeightFiles, copy, of_files, size_in_bytes

    wanted = getattr(torch, DTYPES[dtype]) if dtype is not None else None
    most = size_in_bytes(max_shard_size) if max_shard_size is not None else MAX_FILE_BYTES
    is_adapter = files[0].name == ADAPTER
    with ExitStack() as stack:
        weights = of_files(files, stack).to(wanted)
        stem, size = (Path(ADAPTER).stem, sys.maxsize) if is_adapter else ("model", most)
        copy(weights, WeightFiles(folder, weights.shapes, size, stem, {"format": "pt"}))
