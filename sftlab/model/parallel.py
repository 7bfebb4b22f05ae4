"""Sharding by FSDP2, its precision, and a good precision for one machine.

bf16-mixed under FSDP2: each process keeps its rows of the weights in fp32 for the optimizer; a layer's weights are
gathered in bf16, its gradients are reduced in fp32. Autocast, which other strategies use, would gather in fp32 and
keep a bf16 copy of every weight until the backward pass.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from sftlab.files import partial_name, publish_folder, remove_stale, removed_on_error
from sftlab.model.behind import Behind
from sftlab.model.checkpoint import load_file, load_shards, named_state
from sftlab.model.contents import META, contents, is_sharded
from sftlab.model.loss import SupervisedLoss
from sftlab.model.sharded import divide_again


class ShardedPrecision(MixedPrecision):
    """bf16-mixed by what FSDP2 gathers, where autocast is left out; with autocast for the models that need it.

    Attributes:
        by_weights: The weights are gathered in bf16.
    """

    by_weights = False

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def forward_context(self) -> Any:
        """Autocast where the weights are gathered in full."""
        return nullcontext() if self.by_weights else super().forward_context()


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; works with gloo on CPUs too.

    Lightning's ``ModelParallelStrategy`` splits a node's devices by tensor parallelism unless told otherwise, which
    would train every rank on the same data; this one shards over data parallel ranks only.

    Attributes:
        saves_behind: Checkpoints are written while training goes on.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, **options)
        self.saves_behind = False
        self._behind: Behind | None = None

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's; of bf16-mixed one that knows what FSDP2 gathers."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        is_mixed = type(plugin) is MixedPrecision and plugin.precision == "bf16-mixed"
        self._precision_plugin = ShardedPrecision(cast(MixedPrecision, plugin).device) if is_mixed else plugin

    def setup_environment(self) -> None:
        """The data parallel size is the number of processes, known only now."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the shards into a folder that gets its name when all of them are on the disk; call it on every rank.

        Raises:
            OSError: The disk is full or does not let itself be written.
        """
        path = Path(self.broadcast(str(filepath)))
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, path, storage_options)
        self.finish_saving()
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(path.parent, path.name)
        partial = Path(self.broadcast(str(partial_name(path))))
        if self.saves_behind:
            self._behind = self._behind or Behind(self.is_global_zero)
            optimizers = {f"optimizer_{n}": state for n, state in enumerate(checkpoint.pop("optimizer_states", []))}
            self._behind.begin({"state_dict": checkpoint.pop("state_dict"), **optimizers}, checkpoint, partial, path)
            return None
        with removed_on_error(partial, path):
            super().save_checkpoint(checkpoint, partial, storage_options)
            if self.is_global_zero:
                publish_folder(partial, path)
        self.barrier("checkpoint")
        return None

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written is whole; call it on every rank.

        Raises:
            OSError: The disk is full or does not let itself be written.
            ValueError: It could not be written for another reason.
        """
        if self._behind is not None:
            self._behind.finish()

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove one; while another is being written, when that is whole."""
        if not self.is_global_zero or self._behind is None or not self._behind.remove(Path(filepath)):
            super().remove_checkpoint(filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load model and optimizers from shards or from one file; gives the rest of the checkpoint.

        Raises:
            ValueError: It is damaged, or holds objects that only running code could build.
        """
        from torch.distributed.checkpoint import state_dict as states

        path = Path(self.broadcast(str(checkpoint_path)))
        contents(path)
        model, is_file = self.model, not is_sharded(path)
        assert model is not None and self.lightning_module is not None
        divide_again(model)
        checkpoint = load_file(path if is_file else path / META)
        module = cast(Any, self.lightning_module)
        if self.optimizers and checkpoint.get("optimizer") != getattr(module, "_optimizer_in_use", None):
            module.use_optimizer(self, checkpoint["optimizer"], checkpoint["global_step"])
        options = states.StateDictOptions(full_state_dict=is_file, strict=self.lightning_module.strict_loading)
        weights = {"state_dict": checkpoint.pop("state_dict") if is_file else states.get_model_state_dict(model)}
        if not is_file:
            if not self.lightning_module.strict_loading:  # an adapter's, which leave out what the base has
                held = set(contents(path).weights)
                weights = {"state_dict": {k: v for k, v in weights["state_dict"].items() if k in held}}
            load_shards(weights, path)
        states.set_model_state_dict(model, weights["state_dict"], options=options)
        of_file = checkpoint.pop("optimizer_states", None)
        for number, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{number}"
            if of_file is not None:
                state = {name: named_state(of_file[number], model, optimizer)}
            else:
                state = {name: states.get_optimizer_state_dict(model, optimizer)}
                load_shards(state, path)
            states.set_optimizer_state_dict(model, optimizer, optim_state_dict=state[name], options=options)
        return checkpoint


def register_strategies() -> None:
    """Make ``--trainer.strategy fsdp2`` a known name."""
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description=(FSDP2Strategy.__doc__ or "").splitlines()[0])


def shard(net: SupervisedLoss, layers: nn.ModuleList, mesh: Any, in_bf16: bool = False) -> None:
    """Shard each decoder layer, then the module around them, over the data parallel mesh.

    Args:
        net: The model in its loss.
        layers: Of the model.
        mesh: The processes.
        in_bf16: Gather weights and compute in bf16; gradients are reduced in fp32 all the same.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net.in_bf16 = in_bf16
    bf16, fp32 = (torch.bfloat16, torch.float32) if in_bf16 else (None, None)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(bf16, fp32))
    # What comes in is token ids, and weights of the loss, which must not be rounded.
    fully_shard(net, mesh=mesh, mp_policy=MixedPrecisionPolicy(bf16, fp32, cast_forward_inputs=False))


def gathers_in_bf16(precision: Precision, model: nn.Module) -> bool:
    """Decide how bf16-mixed is to be computed: by autocast where an architecture names weights that stay in fp32."""
    named = [getattr(model, f"_keep_in_fp32_modules{kind}", None) for kind in ("", "_strict")]
    if not isinstance(precision, ShardedPrecision):
        return False
    precision.by_weights = not any(named)
    return precision.by_weights


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The repeated blocks of a causal LM: its longest ModuleList that lies in no other, as a block's experts do."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    assert outer, f"{type(model).__name__} has no decoder layers"
    return max(outer, key=len)


def best_precision() -> str:
    """bf16-mixed where the hardware multiplies bf16 faster: recent GPUs, CPUs with AMX or AVX-512 BF16."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"
