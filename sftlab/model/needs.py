"""Whether a run fits: the estimate of a config on named hardware as a table, and what to change if it does not."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from sftlab.model.adapter import LoRA
from sftlab.model.memory import Estimate, Setup, estimate, training_flops
from sftlab.model.module import SFTModule
from sftlab.model.parallel import FSDP2Strategy, check_groups
from sftlab.model.recompute import Recompute
from sftlab.plan.hardware import GIB, Hardware
from sftlab.plan.plan import Plan

_WORDS = {
    "parameters": "weights on this device",
    "gradients": "at the peak of a step",
    "optimizer": "what it keeps of each weight that is trained",
    "gathered": "of other devices' weights, by FSDP2",
    "activations": "of the largest micro-batch",
    "logits": "and what their loss keeps",
    "kernels": "that a CPU compiles for products in bf16",
}


def setup_of(
    module: SFTModule, strategy: Any, world: int, precision: Any, is_cpu: bool, accumulate: Any = None
) -> Setup:
    """Return how a run is computed, from the arguments of a config or from a built Trainer.

    Args:
        module: The model.
        strategy: A Trainer's strategy, or a config's name for one; by default several devices are sharded.
        world: Number of processes, each with a device.
        precision: Lightning's precision; None is the best of the device.
        is_cpu: Whether the devices are CPUs.
        accumulate: Micro-batches per step; one if they are still to be chosen.

    Raises:
        ValueError: The number of processes is no multiple of the strategy's group size.
    """
    fsdp2 = strategy if isinstance(strategy, FSDP2Strategy) else None
    is_named = strategy is None or (isinstance(strategy, str) and not strategy.startswith("ddp"))
    shard_size = fsdp2.shard_size if fsdp2 is not None else None
    check_groups(shard_size, world)
    if fsdp2 is not None and fsdp2.tensor_parallel_size > 1:
        raise ValueError("--hardware: tensor_parallel_size is not part of the estimate; estimate without it")
    return Setup(
        world=world,
        is_sharded=fsdp2 is not None or (world > 1 and is_named),
        shard_size=shard_size,
        cpu_offload=fsdp2 is not None and fsdp2.cpu_offload,
        reduce_once=fsdp2 is not None and fsdp2.reduce_once,
        accumulate=accumulate if isinstance(accumulate, int) else 1,
        precision=str(precision or ("32-true" if is_cpu else "bf16-mixed")),
        is_cpu=is_cpu,
        checkpointing=module.activation_checkpointing,
        chunk_tokens=module.chunk_tokens,
        adapter=module.adapter,
    )


def planned_setup(module: SFTModule, trainer: Mapping[str, Any], hardware: Hardware) -> Setup:
    """Return how a config would be computed on some hardware."""
    is_cpu, given = hardware.device.name == "CPU", trainer.get("devices")
    world = given if is_cpu and isinstance(given, int) else hardware.count
    how = (trainer.get("precision"), is_cpu, trainer.get("accumulate_grad_batches"))
    return setup_of(module, trainer.get("strategy"), world, *how)


def needs_screen(module: SFTModule, plan: Plan, setup: Setup, hardware: Hardware, mfu: float) -> RenderableType:
    """Return the table of what one device needs, the verdict, time and disk."""
    found, room = estimate(module, plan, setup), hardware.device.usable_bytes
    how = "each whole" if setup.world > 1 else "one process"
    if setup.is_sharded:
        how = "sharded by FSDP2" + (f" in groups of {setup.shard_size}" if setup.shard_size else "")
    batches = f"{setup.accumulate} micro-batch{'es' * (setup.accumulate != 1)} a step"
    title = f"On each of {hardware} ({how}, {setup.precision}, {batches}, the largest of {found.num_tokens:,} tokens)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, justify in (("memory", "left"), ("GiB", "right"), ("what", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, words in _WORDS.items():
        if (size := getattr(found, name)) or name != "kernels":
            table.add_row(name, f"{size / GIB:,.2f}", words)
    table.add_row("together", f"{found.total / GIB:,.2f}", f"of {room / GIB:,.1f} usable", style="bold")
    if setup.is_offloaded:
        words = "weights, gradients and optimizer of each process, in its host's memory"
        table.add_row("host", f"{found.host / GIB:,.2f}", words)
    verdict = [*_verdict(module, plan, setup, found, room), *_allocator(setup)]
    return Group(table, *verdict, *_costs(module, plan, setup, found, hardware, mfu))


def _allocator(setup: Setup) -> Iterator[str]:
    """Say what the C library holds beside the tensors.

    glibc raises the size from which freed blocks go back to the system, up to 32 MiB, so activations leave gaps between
    blocks still in use. How many depends on the lengths of the micro-batches: no fraction holds for all models.
    """
    is_set = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    if setup.is_cpu and platform.libc_ver()[0] == "glibc" and not is_set:
        yield (
            "glibc keeps gaps between activations, which are not counted: measured peaks were 1.1 to 1.9 times the "
            "estimate. With MALLOC_MMAP_THRESHOLD_=65536 MALLOC_ARENA_MAX=1 before the command they are as estimated, "
            "and steps take up to 1.7 times the processor time."
        )


def _verdict(module: SFTModule, plan: Plan, setup: Setup, found: Estimate, room: int) -> Iterator[str]:
    if found.total <= room:
        yield f"It fits: {(room - found.total) / GIB:,.1f} GiB are left."
        return
    yield f"It does not fit: {(found.total - room) / GIB:,.1f} GiB are missing."
    for words, changed in changes(plan, setup):
        if (other := estimate(module, plan, changed)).total <= room:
            yield f"It would with {words} ({other.total / GIB:,.1f} GiB)."
            return
    for words, changed in other_trainings(plan, setup):
        if (other := estimate(module, plan, changed)).total <= room:
            yield f"No memory knob alone mends that. Another training would fit, {other.total / GIB:,.1f} GiB: {words}."
            return
    yield "No memory knob alone mends that: take more devices, or a smaller data.max_length."


def fewest_micro_batches(module: SFTModule, plan: Plan, setup: Setup, room: int) -> tuple[Setup, int]:
    """Return the setup with the fewest micro-batches per step that fit, else with one row in each.

    Args:
        module: The model.
        plan: The plan, as far as it is compiled.
        setup: The setup, whose number of micro-batches is chosen.
        room: Bytes available on a device.

    Returns:
        The setup, and its estimated bytes.

    Raises:
        ValueError: The architecture cannot be estimated.
    """

    @functools.cache
    def needs(number: int) -> int:
        return estimate(module, plan, replace(setup, accumulate=number)).total

    low, chosen = 1, _most_micro_batches(plan, setup)
    if needs(1) <= room:
        chosen = 1
    while chosen - low > 1:  # low does not fit
        middle = (low + chosen) // 2
        low, chosen = (low, middle) if needs(middle) <= room else (middle, chosen)
    return replace(setup, accumulate=chosen), needs(chosen)


def _most_micro_batches(plan: Plan, setup: Setup) -> int:
    """Return the number with one row in each."""
    rows = max(1, int((plan.step_starts_S1[1:] - plan.step_starts_S1[:-1]).max()))
    return max(1, -(-rows // setup.world))


def changes(plan: Plan, setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Return changes that save memory and never change the step, the cheapest first."""
    most = _most_micro_batches(plan, setup)
    first = ("trainer.strategy.reduce_once: false, " if setup.reduce_once else "") + (
        f"trainer.accumulate_grad_batches: {most}"
    )
    divided = replace(setup, accumulate=most, reduce_once=False)
    yield first, divided
    chunked = replace(divided, chunk_tokens=1024)
    yield f"{first} and model.chunk_tokens: 1024", chunked
    for value, words in (("selective", "selective"), (True, "true")):
        knobs = f"{first}, model.activation_checkpointing: {words} and model.chunk_tokens: 1024"
        yield knobs, replace(chunked, checkpointing=cast(Recompute, value))


def other_trainings(plan: Plan, setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Return changes that save memory but train something else: fewer weights, then these in bf16."""
    *_, (knobs, least) = changes(plan, setup)
    words = [] if setup.adapter else ["model.adapter: LoRA"]
    few = replace(least, adapter=setup.adapter or LoRA())
    if words:
        yield ", ".join([*words, knobs]), few
    if setup.precision != "bf16-true":
        yield ", ".join([*words, "trainer.precision: bf16-true", knobs]), replace(few, precision="bf16-true")


def _costs(
    module: SFTModule, plan: Plan, setup: Setup, found: Estimate, hardware: Hardware, mfu: float
) -> Iterator[str]:
    flops = training_flops(plan, found, module.load_config(), setup)
    peak = hardware.device.bf16_tflops
    whole = ""
    if plan.declared:
        yield "Counts alone are declared: one full row a micro-batch is assumed, and a billion tokens."
        whole = " for a billion tokens"
    if peak is None:
        yield f"Arithmetic: {flops:.2e} FLOP; this device's peak is not published, so there are no hours."
    else:
        hours = flops / (setup.world * peak * 1e12 * mfu) / 3600
        at = f"{mfu:.0%} of {peak:,.0f} TFLOP/s ({hardware.device.source})"
        yield f"Arithmetic: {flops:.2e} FLOP, {hours:,.1f} hours{whole} at {at}."
    apart = module.adapter is not None and not module.adapter.changes_base
    size = 2 if setup.precision == "bf16-true" else 4
    kept = found.num_trained if apart else found.num_parameters
    state = kept * size + found.state
    export = kept * size
    together = len(plan.stages) * (state + export) + state
    yield (
        f"Disk: {len(plan.stages)} stages, each a checkpoint of {state / GIB:,.2f} GiB and an export of "
        f"{export / GIB:,.2f} GiB; {together / GIB:,.1f} GiB with one checkpoint inside a stage."
    )
