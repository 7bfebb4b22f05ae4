"""Tensor parallelism: the matrices of a layer are divided among a group of processes that share the same rows.

    q, k, v, gate, up   divided by outputs: each process has whole heads            no communication
    o, down             divided by inputs: each process has a part of every sum     one sum over the group
    all else            whole on each process of a group

The plan in a model's transformers config is used (Megatron's scheme: Shoeybi et al., arXiv 1909.08053); FSDP2 then
shards each process's part among the groups. All weights become tensors of the group's mesh, undivided ones too, so that
norms of gradients and checkpoints have one mesh for all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

_STYLES = ("colwise", "rowwise")
_WARNED_OF = "torch.distributed.tensor._redistribute"  # that a weight is always gathered in two steps


def check_divisible(config: Any, size: int) -> Mapping[str, str]:
    """Return the plan of a model whose layers can be divided among this many processes.

    Raises:
        ValueError: The layers cannot be divided so.
    """
    told = f"trainer.strategy.tensor_parallel_size: {size}: "
    plan = getattr(config, "base_model_tp_plan", None) or {}
    if not plan or set(plan.values()) - set(_STYLES):
        others = ", ".join(sorted(set(plan.values()) - set(_STYLES)))
        lack = f"a plan with {others}" if others else "no plan for it"
        raise ValueError(f"{told}transformers has {lack} for {config.model_type}; leave it out, fsdp2 divides weights")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(config, name, size)
        if count % size:
            raise ValueError(f"{told}the model's {name}, {count}, is no multiple of it")
    return plan


def divide_layers(model: Any, mesh: Any) -> None:
    """Divide the layers of a causal LM, in place, with or without allocated weights.

    Args:
        model: The model, whole on each process; a tied head stays tied.
        mesh: The group, of one dimension.

    Raises:
        ValueError: The architecture cannot be divided so.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    logging.getLogger(_WARNED_OF).setLevel(logging.ERROR)
    plan = check_divisible(model.config, mesh.size())
    _check_apart(model.base_model, plan, mesh.size())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    parallelize_module(model.base_model, mesh, {name: styles[how]() for name, how in plan.items()})
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(isinstance(weight, DTensor) for weight in own):
            _keep_whole(module, mesh)
    if is_tied:
        head.weight = embedding.weight


def _check_apart(model: nn.Module, plan: Mapping[str, str], size: int) -> None:
    """Check that in one attention or MLP either all weights are divided or none.

    A weight between divided ones, such as a norm of each head, sees only one process's heads: its gradient would be
    partial.

    Raises:
        ValueError: Some are not.
    """
    divided = {name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in plan)}
    parents = {name.rpartition(".")[0] for name in divided}
    for name, _ in model.named_parameters():
        module = name.rpartition(".")[0]
        if module not in divided and any(f"{name}.".startswith(f"{parent}.") for parent in parents):
            raise ValueError(
                f"trainer.strategy.tensor_parallel_size: {size}: transformers' plan leaves {name} whole, which stands "
                "among divided weights and would be trained by a part of its gradient; leave tensor_parallel_size out"
            )


def _keep_whole(module: nn.Module, mesh: Any) -> None:
    """Turn weights into undivided tensors of the mesh; inputs and outputs of the module stay as they were."""
    from torch import is_tensor
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    def into(_: nn.Module, inputs: Any, mesh: Any) -> Any:
        whole = [Replicate()]
        return tuple(DTensor.from_local(x, mesh, whole, run_check=False) if is_tensor(x) else x for x in inputs)

    def out(_: nn.Module, output: Any, mesh: Any) -> Any:
        return output.to_local()

    distribute_module(module, mesh, None, into, out)
