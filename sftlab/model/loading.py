"""Loading under FSDP2: every process reads only its own rows of each weight and never holds the whole model.

    shell   the architecture; weights without memory, buffers computed as always       (a tied head stays tied)
    shard   FSDP2 divides what has no memory yet
    fill    memory for this process's rows, and these rows from the safetensors files

For folders whose weights have the names and shapes that the model has; other models (of hub ids, adapters, weights that
transformers renames or joins while it loads) are loaded whole by each process, as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from sftlab.model.adapter import is_adapter
from sftlab.model.attention import register_attention
from sftlab.model.backbone import load_config, resolve_path
from sftlab.model.contents import adapter_base, check_model_folder, weight_files
from sftlab.model.layout import has_heads_of_its_own
from sftlab.model.leftover import tell_leftover, unplaced
from sftlab.model.sharded import buffers_to, local, part_of
from sftlab.model.weights import of_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "model."  # prefix of the Hugging Face model inside SupervisedLoss


def shell(
    path: str, attention: str | None, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, list[Path]] | None:
    """Build a model whose weights have no memory, and find their files; None if it must be loaded whole.

    Raises:
        ValueError: The folder holds no model, or one that is damaged or incomplete.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(resolve_path(path))
    if not (folder / "config.json").is_file() or adapter_base(folder) is not None:
        return None
    check_model_folder(folder)
    register_attention()
    config = load_config(path, None, trust_remote_code)
    with _parameters_without_memory():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=dtype, trust_remote_code=trust_remote_code
        )
    files = weight_files(folder)
    stored = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    with ExitStack() as stack:
        held = of_files(files, stack)
        alike = all(
            name in held.shapes and held.shapes[name].shape == one.shape for name, one in model.named_parameters()
        )
        if stored or not alike or has_heads_of_its_own(model, held):
            return None
    tell_leftover(path, unplaced(model, held.shapes))
    model.config.use_cache = False
    return model.train(), files


@torch.no_grad()
def fill(net: nn.Module, files: list[Path], device: torch.device, cpu_offload: bool = False) -> None:
    """Allocate memory for this process's rows of a sharded model, and read them.

    Args:
        net: The model that ``shell`` returned, inside ``SupervisedLoss``, sharded by ``fully_shard``.
        files: The files that ``shell`` returned.
        device: The device for rows and buffers.
        cpu_offload: Whether the rows stay in the host's memory.
    """
    place = torch.device("cpu") if cpu_offload else device
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None and (weight in made or local(weight).is_meta):
                if weight not in made:
                    empty = torch.empty_like(weight, device=place)
                    made[weight] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                module._parameters[name] = made[weight]
    net.to(place)  # makes FSDP2 read its parameters again
    buffers_to(net, device)
    with ExitStack() as stack:
        places = _open(files, stack)
        for name, weight in net.named_parameters():
            mine, part = local(weight), part_of(weight)
            if not is_adapter(name) and mine.numel():
                mine.copy_(places[name.removeprefix(_PREFIX)].get_slice(name.removeprefix(_PREFIX))[part])


def _open(files: list[Path], stack: ExitStack) -> dict[str, Any]:
    """Return the open file of each weight; nothing is read yet."""
    opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - it is not a dictionary


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Drop parameters' memory when they are registered, before they are initialised; buffers keep theirs."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None and not weight.is_meta:
            weight = nn.Parameter(weight.data.to("meta"), requires_grad=weight.requires_grad)
        register(module, name, weight)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
