"""Snapshots: everything that training changes, saved after a step in order to return to it.

kept/step=000040/0.pt, 1.pt ...     one a process: its own shards of the trained parameters, and buffers
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sftlab.files import whole_file
from sftlab.model.sharded import divide_again, local, part_of


def write_snapshot(net: nn.Module, folder: Path, rank: int) -> None:
    """Save this process's part of a model."""
    write_tensors(net, changing(net), folder, rank)


def write_tensors(net: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> None:
    """Save tensors of this process, each shaped like its part of the model's tensor of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = _starts(net)
    parts = {name: (starts[name], value.detach().cpu().clone()) for name, value in tensors.items()}
    with whole_file(folder / f"{rank}.pt") as partial:
        torch.save(parts, partial)


def read_snapshot(net: nn.Module, folder: Path, rank: int) -> None:
    """Restore this process's part of a model.

    Raises:
        ValueError: It is missing, or belongs to another model.
    """
    now = changing(net)
    saved = read_tensors(net, folder, rank)
    if saved.keys() != now.keys():
        raise ValueError(f"{folder} holds other weights than this model has")
    with torch.no_grad():
        for name, value in now.items():
            value.copy_(saved[name])


def read_tensors(net: nn.Module, folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """Read what ``write_tensors`` saved, as this process's rows now; the number of processes may have changed.

    Raises:
        ValueError: It is missing, or belongs to another model.
    """
    starts, now = _starts(net), changing(net)
    own = folder / f"{rank}.pt"
    saved = _parts(own) if own.is_file() else {}
    if saved and all(name in now and starts[name] == start and now[name].shape == value.shape
                     for name, (start, value) in saved.items()):  # fmt: skip
        return {name: value for name, (_, value) in saved.items()}
    found, missing = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for path in sorted(folder.glob("*.pt")):
        for name, (start, value) in _parts(path).items():
            mine = now.get(name)
            if mine is None or mine.dim() != value.dim():
                raise ValueError(f"{path} holds other weights than this model has")
            if name not in found:
                found[name] = torch.empty_like(mine, dtype=value.dtype, device="cpu")
                missing[name] = torch.ones_like(mine, dtype=torch.bool, device="cpu")
            sizes = zip(start, value.shape, starts[name], mine.shape, strict=True)
            both = [(max(a, b), min(a + m, b + n)) for a, m, b, n in sizes]
            if all(low < high for low, high in both):
                there = tuple(slice(low - a, high - a) for (low, high), a in zip(both, start, strict=True))
                here = tuple(slice(low - b, high - b) for (low, high), b in zip(both, starts[name], strict=True))
                found[name][here], missing[name][here] = value[there], False
    if not found or any(left.any() for left in missing.values()):
        raise ValueError(
            f"{folder}: the weights to go back to are not all there. Go on from an earlier checkpoint of the stage"
        )
    return found


def _parts(path: Path) -> dict[str, tuple[tuple[int, ...], torch.Tensor]]:
    parts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {
        name: (start if isinstance(start, tuple) else (start, *[0] * (value.dim() - 1))[: value.dim()], value)
        for name, (start, value) in parts.items()  # a number is the first row, from before columns could be divided
    }


def _starts(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return where this process's part of each tensor begins: row, column and so on."""
    named = (*net.named_parameters(), *net.named_buffers())
    return {name: tuple(one.start for one in part_of(value)) for name, value in named}


def remove_snapshots(folder: Path, but: set[int]) -> None:
    """Remove the snapshots in a folder, except those of some steps."""
    for path in folder.glob("step=*"):
        if int(path.name.removeprefix("step=")) not in but:
            shutil.rmtree(path, ignore_errors=True)


def changing(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained parameters, as this process's parts if sharded, and the buffers."""
    divide_again(net)
    named: list[tuple[str, Any]] = [
        *((name, p) for name, p in net.named_parameters() if p.requires_grad),
        *net.named_buffers(),
    ]
    return {name: local(value).data for name, value in named}
