"""Weights one tensor at a time: where they come from, and the safetensors files that they are written into.

    Weights       names and shapes now, a tensor when it is asked for     from a checkpoint or from files
    WeightFiles   the place of each tensor is known before the first one arrives, so none waits in memory

A file is laid out as safetensors lays it out: a length of 8 bytes, a header as JSON, then the tensors, those of the
largest type first, by name. Several files have an index beside them, as on the hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sftlab.model.checkpoint import ShardReader, load_file, load_shards
from sftlab.model.contents import contents, is_sharded

MAX_FILE_BYTES = 5 * 10**9  # largest size of a weight file, unless one tensor is larger
_TYPES = {  # safetensors' names, in the order of its files
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.uint32: "U32",
    torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_ORDER = list(_TYPES)


@dataclass(frozen=True)
class Weights:
    """Weights that are loaded one at a time.

    Attributes:
        shapes: Tensors by name, on the device ``meta``.
        take: Returns the tensor of a name, on the CPU.
    """

    shapes: Mapping[str, torch.Tensor]
    take: Callable[[str], torch.Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Weights:
        """Wrap tensors in memory, or mapped from a file."""
        return cls({name: described(tensor) for name, tensor in tensors.items()}, lambda name: tensors[name].cpu())

    def renamed(self, new: Callable[[str], str | None]) -> Weights:
        """Return the weights that get a new name, under it."""
        old = {named: name for name in self.shapes if (named := new(name)) is not None}
        return Weights({named: self.shapes[name] for named, name in old.items()}, lambda named: self.take(old[named]))

    def to(self, dtype: torch.dtype | None) -> Weights:
        """Return floating-point weights in another type."""
        if dtype is None:
            return self

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return Weights({name: cast(one) for name, one in self.shapes.items()}, lambda name: cast(self.take(name)))


def described(tensor: torch.Tensor) -> torch.Tensor:
    """Return shape and type of a tensor, without its memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def of_files(files: Iterable[Path], stack: ExitStack) -> Weights:
    """Return the weights in safetensors files, read when taken.

    Args:
        files: The files, in any order.
        stack: Closes them.
    """
    opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
    places: dict[str, Any] = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no dictionary
    by_name = {name: dtype for dtype, name in _TYPES.items()}
    shapes = {}
    for name, file in places.items():
        piece = file.get_slice(name)
        shapes[name] = torch.empty(piece.get_shape(), dtype=by_name[piece.get_dtype()], device="meta")
    return Weights(shapes, lambda name: places[name].get_tensor(name))


def of_checkpoint(path: Path, prefix: str) -> Weights:
    """Return the weights in a checkpoint whose names have a prefix, under the rest of their names.

    Args:
        path: A file, or a folder of FSDP2 shards, whose tensors are assembled when taken.
        prefix: Prefix of the names in the trained module.

    Raises:
        ValueError: It is damaged, or holds objects that can only be built by running code.
    """
    contents(path)
    if not is_sharded(path):
        return Weights.of(load_file(path)["state_dict"]).renamed(lambda name: _without(name, prefix))
    known = ShardReader(path).read_metadata().state_dict_metadata
    whole = f"state_dict.{prefix}"
    tensors = {name: entry for name, entry in known.items() if name.startswith(whole) and hasattr(entry, "size")}
    shapes = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")  # type: ignore[union-attr]
        for name, entry in tensors.items()
    }

    def take(name: str) -> torch.Tensor:
        state = {name: torch.empty_like(shapes[name], device="cpu")}
        load_shards(state, path, is_alone=True)
        return state[name]

    return Weights(shapes, take).renamed(lambda name: _without(name, whole))


def _without(name: str, prefix: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None


class WeightFiles:
    """Safetensors files that accept tensors one by one, in any order.

    Args:
        folder: The target folder.
        shapes: The expected tensors by name, in the order in which files are filled.
        max_bytes: Largest size of a file, unless one tensor is larger.
        stem: Stem of the files' names.
        metadata: Metadata for each file's header.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, torch.Tensor],
        max_bytes: int = MAX_FILE_BYTES,
        stem: str = "model",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._places: dict[str, tuple[Path, int, torch.Tensor]] = {}
        files = _divided(shapes, max_bytes)
        names = [
            f"{stem}-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else f"{stem}.safetensors"
            for number in range(1, len(files) + 1)
        ]
        for file, inside in zip(names, files, strict=True):
            self._begin(folder / file, {name: shapes[name] for name in inside}, metadata)
        if len(files) > 1:
            total = sum(tensor.nbytes for tensor in shapes.values())
            index = {"metadata": {"total_size": total}, "weight_map": {n: self._places[n][0].name for n in shapes}}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")

    def _begin(self, path: Path, shapes: dict[str, torch.Tensor], metadata: Mapping[str, str] | None) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name in sorted(shapes, key=lambda name: (_ORDER.index(shapes[name].dtype), name)):
            tensor, start = shapes[name], end
            end = start + tensor.nbytes
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            self._places[name] = (path, start, tensor)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            self._places[name] = (path, self._places[name][1] + 8 + len(text), shapes[name])

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor to its place; call it once for each."""
        path, start, shape = self._places.pop(name)
        assert (tensor.shape, tensor.dtype) == (shape.shape, shape.dtype), name
        with path.open("r+b") as file:
            file.seek(start)
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Check that all tensors have been written, and close."""
        assert not self._places, f"not written: {sorted(self._places)[:3]}"


def copy(weights: Weights, files: WeightFiles) -> None:
    """Copy all weights."""
    for name in weights.shapes:
        files.write(name, weights.take(name))
    files.close()


def _divided(shapes: Mapping[str, torch.Tensor], max_bytes: int) -> list[list[str]]:
    """Distribute names over files in order, starting a new file if the next tensor would make it too large."""
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in shapes.items():
        if files[-1] and size + tensor.nbytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += tensor.nbytes
    return files


def size_in_bytes(text: str) -> int:
    """Parse 5GB, 500MB or 20KB as bytes."""
    return int(text[:-2]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[text[-2:]]
