"""Snapshots: what training changes, as it is after a step, put aside to go back to.

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
from sftlab.model.sharded import divide_again, local


def write_snapshot(net: nn.Module, folder: Path, rank: int) -> None:
    """Put this process's part of a model aside."""
    write_tensors(changing(net), folder, rank)


def write_tensors(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> None:
    """Put tensors of this process aside."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"{rank}.pt") as partial:
        torch.save({name: value.detach().cpu().clone() for name, value in tensors.items()}, partial)


def read_snapshot(net: nn.Module, folder: Path, rank: int) -> None:
    """Bring this process's part of a model back.

    Raises:
        ValueError: It is not there, or was cut otherwise.
    """
    saved = read_tensors(folder, rank)
    now = changing(net)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in now.items()}:
        path = folder / f"{rank}.pt"
        raise ValueError(f"{path} holds other weights than this model has, or the run had another number of processes")
    with torch.no_grad():
        for name, value in now.items():
            value.copy_(saved[name])


def read_tensors(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """What ``write_tensors`` has put aside.

    Raises:
        ValueError: It is not there.
    """
    path = folder / f"{rank}.pt"
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: the weights to go back to are gone, or the run had another number of processes. Go "
            "on from an earlier checkpoint of the stage"
        )
    saved: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def remove_snapshots(folder: Path, but: set[int]) -> None:
    """Take the snapshots in a folder away, except of some steps."""
    for path in folder.glob("step=*"):
        if int(path.name.removeprefix("step=")) not in but:
            shutil.rmtree(path, ignore_errors=True)


def changing(net: nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters, of sharded ones this process's part, and the buffers."""
    divide_again(net)
    named: list[tuple[str, Any]] = [
        *((name, p) for name, p in net.named_parameters() if p.requires_grad),
        *net.named_buffers(),
    ]
    return {name: local(value).data for name, value in named}
