"""``trainer.accumulate_grad_batches: auto``: as few micro-batches as the memory estimate says fit.

It saves memory and never changes a step. The memory is what is free on the GPU before the model is there; on a CPU the
machine's, divided among the processes on it. ``auto:8GiB`` states it. A checkpoint that counts in other micro-batches
is read as what this run's are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import distributed

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.trainer_options import AUTO, devices_problem
from sftlab.model.needs import fewest_micro_batches, setup_of
from sftlab.plan.hardware import GIB, USABLE, available_bytes
from sftlab.run.folder import untouched_removed
from sftlab.screen import show


class PlannedTrainer(Trainer):
    """Lightning's Trainer, with a number of micro-batches that may be chosen once the plan is known.

    Args:
        arguments: Of Lightning's Trainer.
        accumulate_grad_batches: Micro-batches of a step: a number, ``auto``, or ``auto:8GiB`` with the memory of each
            process.
        options: Of Lightning's Trainer.

    Raises:
        ValueError: Without a GPU, more devices than processes make sense; or two callbacks of one kind and settings.
    """

    def __init__(self, *arguments: Any, accumulate_grad_batches: int | str = 1, **options: Any) -> None:
        self.micro_batches_asked = accumulate_grad_batches
        number = accumulate_grad_batches if isinstance(accumulate_grad_batches, int) else 1
        is_cpu = options.get("accelerator", "auto") in ("auto", "cpu") and not torch.accelerator.is_available()
        if problem := devices_problem(options.get("devices"), is_cpu):
            raise ValueError(problem)
        try:
            super().__init__(*arguments, accumulate_grad_batches=number, **options)
        except RuntimeError as error:
            if "more than one stateful callback" not in str(error):
                raise
            raise ValueError(f"trainer.callbacks: two of them would save their state as one: {error}") from error

    def fit(self, *arguments: Any, **options: Any) -> None:
        """Fit like Lightning; if it fails before anything was trained, remove a new run's folder."""
        with untouched_removed(Path(self.default_root_dir)):
            super().fit(*arguments, **options)


def choose_micro_batches(context: RunContext) -> None:
    """Set the number of micro-batches if the Trainer leaves the choice to us. Call it on every rank.

    Raises:
        ValueError: The architecture cannot be estimated.
    """
    trainer = context.trainer
    match = re.fullmatch(AUTO, str(getattr(trainer, "micro_batches_asked", "")))
    if match is None:
        return
    room, strategy = _room(trainer, match[1]), trainer.strategy
    is_cpu = strategy.root_device.type == "cpu"
    try:
        one = setup_of(context.module, strategy, trainer.world_size, trainer.precision, is_cpu)
        setup, needed = fewest_micro_batches(context.module, context.plan, one, room)
    except ValueError as error:
        reason = str(error).removeprefix("--hardware: ")
        raise ValueError(f"trainer.accumulate_grad_batches: auto: {reason}; give a number") from error
    trainer.accumulate_grad_batches = setup.accumulate
    if trainer.is_global_zero:
        fits = "" if needed <= room else ": one row at a time, and by the estimate even that does not fit"
        sizes = f"{needed / GIB:,.2f} GiB of {room / GIB:,.2f}"
        show(f"Micro-batches of a step: {setup.accumulate}, by the estimate {sizes}{fits}")


def _room(trainer: Trainer, stated: str | None) -> int:
    """Return the bytes that a process may use, on the rank that has the least."""
    device = trainer.strategy.root_device
    if stated is not None:
        room = int(float(stated) * GIB)
    elif device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * USABLE)
    else:
        room = available_bytes() // trainer.num_devices
    if not (distributed.is_available() and distributed.is_initialized()):
        return room
    rooms: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(rooms, room)
    return min(rooms)


def count_in_micro_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Restate the loop's progress for this run's micro-batches: the optimizer step is the truth.

    The numbers are those of a save inside ``on_train_batch_end``, where the last batch does not count as completed.
    """
    step = checkpoint["global_step"]
    loop = checkpoint["loops"]["fit_loop"]
    loop["state_dict"]["combined_loader"] = [{"step": step}]
    loop["epoch_loop.batch_progress"]["is_last_batch"] = False  # a run that reuses a stage has more of them
    for counts in (loop["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
        counts.update(dict.fromkeys(counts, step * accumulate))
        counts["completed"] -= 1
