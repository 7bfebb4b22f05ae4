"""Parameters that FSDP2 has divided by rows among ranks; whole ones are taken as they are."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a parameter, or of its gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows; call it on every rank."""
    return cast(torch.Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor


def rows_of(parameter: torch.Tensor) -> slice:
    """Which rows of a parameter this rank has."""
    if not isinstance(parameter, DTensor):
        return slice(None)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return slice(start[0], start[0] + shape[0])


def divide_again(net: nn.Module) -> None:
    """A forward pass without a backward one leaves the outermost parameters gathered: give each rank its rows alone."""
    for part in net.modules():
        if hasattr(part, "reshard"):
            cast(Any, part).reshard()


def buffers_to(net: nn.Module, device: torch.device) -> None:
    """Move what is not a weight."""
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
