"""Parameters divided among ranks: by rows (FSDP2), or by columns too (tensor parallelism); others are whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of a parameter, or of its gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all rows. Call it on every rank."""
    return cast(torch.Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor


def rows_of(parameter: torch.Tensor) -> slice:
    """Return which rows of a parameter this rank has, if it is divided by rows only."""
    return part_of(parameter)[0] if isinstance(parameter, DTensor) else slice(None)


def part_of(parameter: torch.Tensor) -> tuple[slice, ...]:
    """Return which part of a parameter this rank has: rows, columns and so on."""
    if not isinstance(parameter, DTensor):
        return tuple(slice(0, size) for size in parameter.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))


def divide_again(net: nn.Module) -> None:
    """Shard the outermost parameters again, which a forward pass without a backward pass leaves gathered."""
    for part in net.modules():
        if hasattr(part, "reshard"):
            cast(Any, part).reshard()


def buffers_to(net: nn.Module, device: torch.device) -> None:
    """Move buffers, that is, everything but weights."""
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
