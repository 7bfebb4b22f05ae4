"""The memory, arithmetic and disk space that a run needs, estimated before it starts.

The model's own code runs once, forward and backward, over the plan's largest micro-batch, on tensors with shapes but no
memory (FakeTensorMode). A dispatch mode sees every storage created and freed, so the peak of activations, logits and
gradients is counted, not fitted. Parameters, optimizer state and what FSDP2 gathers are added by arithmetic:

    held      = (parameters + what the optimizer keeps) / ranks                             of the host under offload
    gathered  = the outermost weights whole, two layers and a copy of one on the way        FSDP2 alone, of bf16-mixed
                                                                                            in bf16
    forward   = held + gathered + gradients of the step before + what the pass keeps
    backward  = held + gathered + gradients so far + what the pass still keeps
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sftlab.data.feed import Batch
from sftlab.model.adapter import LoRA, attach
from sftlab.model.attention import PER_DOCUMENT, register_attention
from sftlab.model.freeze import freeze
from sftlab.model.loss import SupervisedLoss
from sftlab.model.module import SFTModule
from sftlab.model.moments import kept_bytes, kinds
from sftlab.model.parallel import decoder_layers
from sftlab.model.recompute import Recompute, recompute
from sftlab.plan.plan import Plan

_AS_FLASH = "counted"  # an attention that keeps as much as flash attention
_KEPT: dict[Recompute, int] = {False: 34, "selective": 20, True: 68}  # bytes per token and width, over all layers
_TRIED = 4  # token counts at which ``isolation`` runs the forward pass, in bf16 if weights are gathered in bf16
_FOUR_BITS = 0.53  # bytes of a weight in nf4 with its doubly quantised scales


@dataclass(frozen=True)
class Setup:
    """How a run is computed.

    Attributes:
        world: Processes, each with a device.
        is_sharded: Whether FSDP2 divides weights, gradients and optimizer state among them.
        shard_size: Size of the groups among which FSDP2 divides; None means all processes.
        cpu_offload: Whether the divided state is in host memory.
        reduce_once: Whether gradients are whole on each device until the last micro-batch of a step.
        accumulate: Micro-batches per step.
        precision: Lightning's precision.
        is_cpu: Whether the devices are CPUs, whose attention keeps more.
        checkpointing: ``activation_checkpointing`` of ``SFTModule``.
        chunk_tokens: Supervised tokens whose logits are held at once.
        adapter: LoRA.
    """

    world: int = 1
    is_sharded: bool = False
    shard_size: int | None = None
    cpu_offload: bool = False
    reduce_once: bool = False
    accumulate: int = 1
    precision: str = "bf16-mixed"
    is_cpu: bool = False
    checkpointing: Recompute = False
    chunk_tokens: int | None = None
    adapter: LoRA | None = None

    @property
    def ranks(self) -> int:
        """Number of processes among which weights are divided."""
        return (self.shard_size or self.world) if self.is_sharded else 1

    @property
    def is_offloaded(self) -> bool:
        """Whether the divided state is not on the computing device."""
        return self.is_sharded and self.cpu_offload and not self.is_cpu

    @property
    def gathers_in_bf16(self) -> bool:
        """Whether weights are kept in fp32 and used in bf16."""
        return self.is_sharded and self.precision == "bf16-mixed"


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device at the peak of a step.

    Attributes:
        num_tokens: Tokens of the largest micro-batch.
        parameters: Weights on the device.
        gradients: Their gradients, at the peak.
        optimizer: Optimizer state, the largest of all stages.
        gathered: Other devices' weights gathered by FSDP2.
        activations: What the backward pass needs, without logits.
        logits: Logits and what their loss needs.
        num_parameters: Number of parameters of the whole model.
        num_trained: Number of trained parameters.
        kernels: Kernels that a CPU compiles for products in bf16, and keeps.
        host: Bytes of weights, gradients and optimizer state in host memory, per process.
        state: Bytes of optimizer state, all processes together.
    """

    num_tokens: int
    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    num_parameters: int
    num_trained: int
    kernels: int = 0
    host: int = 0
    state: int = 0

    @property
    def total(self) -> int:
        """Sum of all kinds."""
        held = self.parameters + self.gradients + self.optimizer + self.gathered
        return held + self.activations + self.logits + self.kernels


def estimate(module: SFTModule, plan: Plan, setup: Setup) -> Estimate:
    """Estimate what a plan's largest micro-batch needs, from the model's config, without weights.

    Raises:
        ValueError: The computation depends on tensor values (experts), so shapes are not enough.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException
    from transformers import AutoModelForCausalLM

    config = module.load_config()
    register_attention()
    _register_counted()
    dtype = torch.bfloat16 if setup.precision == "bf16-true" or setup.gathers_in_bf16 else torch.float32
    choices = [module.optimizer_of(planned.stage) for planned in plan.stages] or [module.optimizer]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            name = PER_DOCUMENT if setup.is_cpu else _AS_FLASH
            model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=dtype)
            model.config.use_cache = False
            model.train()
            if setup.adapter is not None:
                attach(setup.adapter, model, decoder_layers(model))
            freeze(model, module.frozen)
            recompute(model, setup.checkpointing)
            net = SupervisedLoss(model, setup.chunk_tokens)
            net.in_bf16 = setup.gathers_in_bf16
            batch = _largest(plan, setup, model.config.get_text_config())
            found = _counted(net, decoder_layers(model), batch, setup, _num_lengths(plan, setup))
            trained = [(p.numel(), kind) for p, kind in kinds(net)]
    except (UnsupportedFakeTensorException, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(f"--hardware: {config.model_type} cannot be counted by its shapes alone ({reason})") from error
    kept_in = torch.bfloat16 if setup.precision == "bf16-true" else torch.float32
    kept = [kept_bytes(choice, kept_in) for choice in choices]
    optimizer = max(sum(size * bytes_of[kind] for size, kind in trained) for bytes_of in kept)
    mine, found = int(optimizer) // setup.ranks, replace(found, state=int(optimizer))
    return replace(found, host=found.host + mine) if setup.is_offloaded else replace(found, optimizer=mine)


def _counted(net: SupervisedLoss, layers: nn.ModuleList, batch: Batch, setup: Setup, num_lengths: int) -> Estimate:
    """Run the step on tensors without memory."""
    adapter, ranks = setup.adapter, setup.ranks
    kept = 2 if setup.gathers_in_bf16 else 1  # bytes kept in fp32 per byte of a computing weight
    inside = {id(p) for p in layers.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    counts = [(p, p.numel() * p.element_size()) for p in net.parameters()]
    nf4 = adapter is not None and adapter.quantise is not None
    held = sum(
        int(size / 4 * _FOUR_BITS) if nf4 and id(p) in inside and not p.requires_grad else size for p, size in counts
    )
    outer = sum(size for p, size in counts if id(p) not in inside)
    layer = max(sum(p.numel() * p.element_size() for p in one.parameters()) for one in layers)
    gradients = kept * sum(p.numel() * p.element_size() for p in trained)
    live = _Live(net)
    stays = 0.0 if setup.is_offloaded else 1 / ranks  # this device's part of a divided gradient
    share = kept * stays if setup.accumulate == 1 else 0.0
    for p in trained:
        if (ranks > 1 and id(p) in inside) or setup.accumulate > 1:
            size = p.numel() * p.element_size()
            p.register_post_accumulate_grad_hook(lambda _, size=size: live.forget(size * (1 - share)))
    is_autocast = setup.precision == "bf16-mixed" and not setup.gathers_in_bf16
    cast = torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()
    is_whole = setup.accumulate > 1 and setup.reduce_once
    before = gradients * (1.0 if is_whole else stays)  # of the previous step, or the earlier micro-batches
    with live:
        with cast:
            loss, _ = net(batch, torch.ones(len(batch.lengths_D)))
        forward, num_forward = (live.peak + before, live.peak, live.logits_at_peak), len(live.products)
        live.peak = live.live
        loss.backward()
    waiting = before if setup.accumulate > 1 else 0.0
    peak, passing, logits = max(forward, (live.peak + waiting, live.peak, live.logits_at_peak))
    grads = peak - passing if peak == forward[0] else min(waiting + live.gradients_at_peak, peak)
    num_kernels = len(live.products) * num_lengths + (_TRIED * num_forward if setup.gathers_in_bf16 else 0)
    is_gathered = setup.is_sharded and (ranks > 1 or kept > 1 or setup.is_offloaded)
    gathered = outer + 3 * layer if is_gathered else 0
    return Estimate(
        num_tokens=len(batch.ids_T),
        parameters=0 if setup.is_offloaded else kept * held // ranks,
        gradients=int(grads),
        optimizer=0,  # state is counted separately
        gathered=gathered,
        activations=int(peak - grads - logits),
        logits=int(logits),
        num_parameters=sum(p.numel() for p in net.parameters()),
        num_trained=sum(p.numel() for p in trained),
        kernels=_kernel_bytes(num_kernels) if setup.is_cpu else 0,
        host=(kept * held + gradients) // ranks if setup.is_offloaded else 0,
    )


class _Live(TorchDispatchMode):
    """Sums the existing storages, except those of a model's weights."""

    def __init__(self, net: SupervisedLoss) -> None:
        super().__init__()
        self.live = self.peak = 0.0
        self.logits = self.logits_at_peak = self.gradients_at_peak = 0.0
        self.products: set[Any] = set()  # in bf16, by shape
        self._net, self._vocabulary = net, net.model.config.get_text_config().vocab_size
        self._sizes: dict[int, tuple[int, bool]] = {t.untyped_storage()._cdata: (0, False) for t in _tensors(net)}
        self._forgotten = 0.0

    def forget(self, size: float) -> None:
        """Discount a gradient that is reduced to other ranks, or added to an existing one."""
        self.live -= size
        self._forgotten += size

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size, is_logits = storage.nbytes(), tensor.ndim == 2 and tensor.shape[-1] == self._vocabulary
        self._sizes[key] = (size, is_logits)
        weakref.finalize(storage, self._gone, key)
        self.live += size
        self.logits += size if is_logits else 0
        if self.live > self.peak:
            self.peak, self.logits_at_peak = self.live, self.logits
            grads = sum(p.grad.numel() * p.grad.element_size() for p in self._net.parameters() if p.grad is not None)
            self.gradients_at_peak = grads - self._forgotten

    def _gone(self, key: int) -> None:
        size, is_logits = self._sizes.pop(key, (0, False))
        self.live -= size
        self.logits -= size if is_logits else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its outputs."""
        out = func(*args, **(kwargs or {}))
        if str(func).startswith(("aten.mm", "aten.addmm")) and out.dtype == torch.bfloat16:
            shapes = [(arg.shape, arg.stride()) for arg in args if isinstance(arg, torch.Tensor)]
            self.products.add((func, *shapes))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._see(value)
        return out


def _tensors(net: nn.Module) -> Iterator[torch.Tensor]:
    yield from net.parameters()
    yield from net.buffers()


def _micro_batches(plan: Plan, setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Return the micro-batch of each row of a plan, numbered over all processes, and the tokens of each row."""
    chunks = setup.accumulate * setup.world
    starts_R, steps_S1 = plan.row_starts_R1[:-1], plan.step_starts_S1
    row_R = np.arange(len(starts_R))
    step_R = np.searchsorted(steps_S1, row_R, side="right") - 1
    chunk_R = step_R * chunks + (row_R - steps_S1[step_R]) % chunks
    return chunk_R, np.add.reduceat(plan.lengths_N[plan.example_E], starts_R)


def _largest(plan: Plan, setup: Setup, config: Any) -> Batch:
    """Return the micro-batch of a plan that needs the most, judged by shapes; for declared counts, one full row."""
    if plan.declared:
        return _shapes([plan.max_length], [plan.max_length], plan.max_length)
    chunk_R, tokens_R = _micro_batches(plan, setup)
    supervised_R = np.add.reduceat(plan.supervised_N[plan.example_E], plan.row_starts_R1[:-1])
    layers = 1 if setup.checkpointing is True else config.num_hidden_layers
    weight = config.hidden_size * _KEPT[setup.checkpointing] * layers
    logits = 10 * config.vocab_size if setup.chunk_tokens is None else 0
    cost = np.bincount(chunk_R, weights=weight * tokens_R + logits * supervised_R)
    rows = np.flatnonzero(chunk_R == int(cost.argmax()))
    docs = np.concatenate([plan.example_E[plan.row_starts_R1[r] : plan.row_starts_R1[r + 1]] for r in rows])
    return _shapes(plan.lengths_N[docs].tolist(), tokens_R[rows].tolist(), int(plan.supervised_N[docs].sum()))


def _num_lengths(plan: Plan, setup: Setup) -> int:
    """Return how many distinct token counts, padded to multiples of 64, the micro-batches of one process have."""
    if plan.declared:
        return 1
    chunk_R, tokens_R = _micro_batches(plan, setup)
    mine = np.bincount(chunk_R, weights=tokens_R)[:: setup.world]  # those of one process, or as many
    return len(np.unique(-(-mine[mine > 0] // 64)))


def _kernel_bytes(num: int) -> int:
    """Return the bytes that oneDNN holds: it compiles a bf16 product for each shape and keeps 1,024 of them.

    Measured with torch 2.13 on a CPU with AMX: 11 MiB for the first one, 0.56 MiB for each, whatever its shape.
    """
    return int((11 + 0.56 * min(num, 1024)) * 2**20) if num else 0


def _shapes(lengths: list[int], row_lengths: list[int], kept: int) -> Batch:
    def zeros(size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.long)

    return Batch(
        step=0,
        ids_T=zeros(sum(lengths)),
        positions_T=zeros(sum(lengths)),
        lengths_D=lengths,
        row_lengths_R=row_lengths,
        keep_K=zeros(kept),
        target_K=zeros(kept),
        example_K=zeros(kept),
        ability_D=zeros(len(lengths)),
        supervised_D=zeros(len(lengths)),
        number_D=list(range(len(lengths))),
    )


def _flash(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Keep query, key, value, output and one number per row, as flash attention does."""
    output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    return output.transpose(1, 2).contiguous(), None


def _register_counted() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_AS_FLASH, _flash)


def training_flops(plan: Plan, found: Estimate, config: Any, setup: Setup) -> float:
    """Count the operations of a whole plan; for declared counts, of a billion tokens in full-row examples.

    Per weight and token: 2 forward, 2 for inputs' and 2 for weights' gradients. Attention adds 2 x layers x width x
    length^2 per example forward (half of a square, two products), twice that backward; frozen weights need no gradient;
    recomputing whole layers costs another forward pass.
    """
    lengths = [plan.max_length] if plan.declared else plan.lengths_N[plan.example_E]
    sizes = np.asarray(lengths, dtype=np.float64)
    config = config.get_text_config()
    again = 1 if setup.checkpointing is True else 0
    passes = 2 + (found.num_trained / found.num_parameters) + again
    products = 2 * found.num_parameters * float(sizes.sum()) * passes
    attention = 2 * config.num_hidden_layers * config.hidden_size * float((sizes**2).sum()) * (3 + again)
    return (products + attention) * (1e9 / plan.max_length if plan.declared else 1)
