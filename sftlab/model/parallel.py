"""Sharding by FSDP2, over all processes or within groups, its precision, and the best precision of a machine.

bf16-mixed under FSDP2: each process keeps its rows of the weights in fp32 for the optimizer; a layer's weights are
gathered in bf16, its gradients are reduced in fp32. Autocast, which other strategies use, would gather in fp32 and
keep a bf16 copy of every weight until the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from sftlab.bounds import within
from sftlab.files import partial_name, publish_folder, remove_stale, removed_on_error
from sftlab.model.async_save import AsyncSave
from sftlab.model.checkpoint import load_file, load_shards, named_state
from sftlab.model.contents import META, contents, is_sharded
from sftlab.model.loss import SupervisedLoss
from sftlab.model.sharded import buffers_to, divide_again
from sftlab.model.tensor_parallel import divide_layers


class ShardedPrecision(MixedPrecision):
    """bf16-mixed by gathering weights in bf16, without autocast; with autocast for models that need it.

    Attributes:
        by_weights: Whether the weights are gathered in bf16.
    """

    by_weights = False

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def forward_context(self) -> Any:
        """Return autocast if the weights are gathered in full precision."""
        return nullcontext() if self.by_weights else super().forward_context()


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; works with gloo on CPUs too.

    Lightning's ``ModelParallelStrategy`` splits a node's devices by tensor parallelism unless told otherwise, which
    would train every rank on the same data; this one does so only when asked, and then ranks of a group get the same.

    None of its arguments changes what is trained; checkpoints go from one choice to another.

    Args:
        shard_size: Processes that divide the weights among them, such as those of a node; each such group holds all of
            them, and only gradients go between groups. None: one group of all processes.
        cpu_offload: Weights, gradients and optimizer state stay in the host's memory, where the optimizer steps; a
            layer's weights are on the device while it computes. For what does not fit otherwise: it is slow.
        tensor_parallel_size: Processes, neighbours of one node, that divide the matrices of each layer and train the
            same rows; FSDP2 divides among these groups. For layers that do not fit otherwise. Not with shard_size.
        reduce_once: Gradients are reduced after the last micro-batch of a step alone, not after each: less traffic, and
            until then each device holds all of them whole (4 bytes for each weight that is trained).
        options: Of Lightning's ModelParallelStrategy: timeout, process_group_backend, save_distributed_checkpoint.

    Attributes:
        saves_asynchronously: Checkpoints are written while training goes on.

    Raises:
        ValueError: A group has no process.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        cpu_offload: bool = False,
        reduce_once: bool = False,
        tensor_parallel_size: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=tensor_parallel_size, **options)
        within("trainer.strategy.tensor_parallel_size", tensor_parallel_size, 1, 10**6, is_whole=True)
        if shard_size is not None and tensor_parallel_size > 1:
            raise ValueError("trainer.strategy: shard_size and tensor_parallel_size do not go together; give one")
        self.tensor_parallel_size = tensor_parallel_size
        if shard_size is not None:
            within("trainer.strategy.shard_size", shard_size, 1, 10**6, is_whole=True)
        self.shard_size, self.cpu_offload, self.reduce_once = shard_size, cpu_offload, reduce_once
        self.shard_mesh: Any = None  # known with the processes
        self.saves_asynchronously = False
        self._async_save: AsyncSave | None = None

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's precision plugin; for bf16-mixed, one that knows what FSDP2 gathers."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        is_mixed = type(plugin) is MixedPrecision and plugin.precision == "bf16-mixed"
        self._precision_plugin = ShardedPrecision(cast(MixedPrecision, plugin).device) if is_mixed else plugin

    def setup_environment(self) -> None:
        """Set the data parallel size to the number of processes, which is known only now.

        Raises:
            ValueError: The number of processes is no multiple of the group size.
        """
        from torch.distributed.device_mesh import init_device_mesh

        world = self.num_processes * self.num_nodes
        check_groups(self.shard_size, world)
        check_groups(self.tensor_parallel_size, self.num_processes, "tensor_parallel_size")
        self._data_parallel_size = world // self.tensor_parallel_size
        if self.cpu_offload and self.root_device.type == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # norms of gradients are summed over this mesh
        super().setup_environment()
        self.shard_mesh = self.device_mesh["data_parallel"]
        if self.shard_size is not None:
            shape = (world // self.shard_size, self.shard_size)
            self.shard_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("copies", "shards"))

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce over the processes that have their own rows, unless a group is given."""
        if group is None and self.tensor_parallel_size > 1:
            group = self.device_mesh["data_parallel"].get_group()
        return super().reduce(tensor, group, reduce_op)

    def model_to_device(self) -> None:
        """Move the model; weights kept in host memory stay there."""
        if not self.cpu_offload:
            return super().model_to_device()
        assert self.model is not None and self.lightning_module is not None
        buffers_to(self.model, self.root_device)
        self.lightning_module._device = self.root_device
        return None

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Skip communication between groups in all but a step's last micro-batch; all of it with ``reduce_once``."""
        net = cast(Any, self.lightning_module).net
        switch = net.set_requires_gradient_sync if self.reduce_once else net.set_requires_all_reduce
        switch(False)
        try:
            yield
        finally:
            switch(True)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the shards into a folder that gets its name once all are on disk. Call it on every rank.

        Raises:
            OSError: The disk is full or not writable.
        """
        path = Path(self.broadcast(str(filepath)))
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, path, storage_options)
        self.finish_saving()
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(path.parent, path.name)
        partial = Path(self.broadcast(str(partial_name(path))))
        if self.saves_asynchronously:
            self._async_save = self._async_save or AsyncSave(self.is_global_zero)
            optimizers = {f"optimizer_{n}": state for n, state in enumerate(checkpoint.pop("optimizer_states", []))}
            self._async_save.begin(
                {"state_dict": checkpoint.pop("state_dict"), **optimizers}, checkpoint, partial, path
            )
            return None
        with removed_on_error(partial, path):
            super().save_checkpoint(checkpoint, partial, storage_options)
            if self.is_global_zero:
                publish_folder(partial, path)
        self.barrier("checkpoint")
        return None

    def finish_saving(self) -> None:
        """Wait until the checkpoint being written is complete. Call it on every rank.

        Raises:
            OSError: The disk is full or not writable.
            ValueError: It could not be written for another reason.
        """
        if self._async_save is not None:
            self._async_save.finish()

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a checkpoint; while another one is being written, wait until that is complete."""
        if not self.is_global_zero or self._async_save is None or not self._async_save.remove(Path(filepath)):
            super().remove_checkpoint(filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load model and optimizers from shards or from one file; return the rest of the checkpoint.

        Raises:
            ValueError: It is damaged, or holds objects that can only be built by running code.
        """
        from torch.distributed.checkpoint import state_dict as states

        path = Path(self.broadcast(str(checkpoint_path)))
        contents(path)
        model, is_file = self.model, not is_sharded(path)
        assert model is not None and self.lightning_module is not None
        divide_again(model)
        checkpoint = load_file(path if is_file else path / META)
        module = cast(Any, self.lightning_module)
        if is_file:
            module.check_weights(checkpoint["state_dict"])
        if self.optimizers and checkpoint.get("optimizer") != module.optimizer_in_use:
            module.use_optimizer(self, checkpoint["optimizer"], checkpoint["global_step"])
        options = states.StateDictOptions(full_state_dict=is_file, strict=self.lightning_module.strict_loading)
        weights = {"state_dict": checkpoint.pop("state_dict") if is_file else states.get_model_state_dict(model)}
        if not is_file:
            if not self.lightning_module.strict_loading:  # an adapter's checkpoint, which leaves out the base's weights
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
    """Register ``--trainer.strategy fsdp2``."""
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description=(FSDP2Strategy.__doc__ or "").splitlines()[0])


def check_groups(shard_size: int | None, world: int, option: str = "shard_size") -> None:
    """Check that processes can be divided into groups of a size.

    Raises:
        ValueError: They cannot.
    """
    if shard_size is not None and world % shard_size:
        sizes = ", ".join(str(size) for size in range(1, world + 1) if world % size == 0)
        raise ValueError(
            f"trainer.strategy.{option}: {world} processes make no groups of {shard_size}; possible: {sizes}"
        )


def shard(
    net: SupervisedLoss, layers: nn.ModuleList, mesh: Any, in_bf16: bool = False, cpu_offload: bool = False
) -> None:
    """Shard each decoder layer, then the module around them, over the data parallel mesh.

    Args:
        net: The loss with the model.
        layers: The decoder layers.
        mesh: The processes; with two dimensions, the first one replicates.
        in_bf16: Whether to gather weights and compute in bf16; gradients are reduced in fp32 in any case.
        cpu_offload: Whether to keep weights in host memory.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    net.in_bf16 = in_bf16
    bf16, fp32 = (torch.bfloat16, torch.float32) if in_bf16 else (None, None)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    how: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
    for layer in layers:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(bf16, fp32), **how)
    # The inputs are token ids and weights of the loss, which must not be rounded.
    fully_shard(net, mp_policy=MixedPrecisionPolicy(bf16, fp32, cast_forward_inputs=False), **how)


def divide(model: Any, strategy: Any, adapter: Any) -> None:
    """Divide the matrices of each layer among the processes of a group, if the strategy asks for it.

    Raises:
        ValueError: The architecture or an adapter does not support it.
    """
    if strategy.tensor_parallel_size == 1:
        return
    if adapter is not None:
        raise ValueError(
            "trainer.strategy.tensor_parallel_size: model.adapter does not go with it; leave one of them out"
        )
    divide_layers(model, strategy.device_mesh["tensor_parallel"])


def gathers_in_bf16(precision: Precision, model: nn.Module) -> bool:
    """Return whether bf16-mixed gathers in bf16; autocast is used if an architecture keeps some weights in fp32."""
    named = [getattr(model, f"_keep_in_fp32_modules{kind}", None) for kind in ("", "_strict")]
    if not isinstance(precision, ShardedPrecision):
        return False
    precision.by_weights = not any(named)
    return precision.by_weights


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the repeated blocks of a causal LM: its longest ModuleList not inside another (a block's experts are)."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    assert outer, f"{type(model).__name__} has no decoder layers"
    return max(outer, key=len)


def best_precision() -> str:
    """Return bf16-mixed if the hardware multiplies bf16 faster: recent GPUs, CPUs with AMX or AVX-512 BF16."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"
