"""Averaging: a stage ends with the mean of its weights over its last steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sftlab.callbacks.context import RunContext
from sftlab.model.snapshot import changing, read_tensors, remove_snapshots, write_tensors
from sftlab.plan.plan import StagePlan
from sftlab.screen import show

_FOLDER = "averaged"


class TailAverage:
    """Keeps the running mean of the trained weights over a stage's last steps (Jain et al. 2018, tail averaging).

    Every process keeps the mean of its own shards in float32: one more copy of the trained weights in memory.

    Args:
        context: The run.
        num_steps: Number of a stage's last steps to average; None averages nothing.
    """

    def __init__(self, context: RunContext, num_steps: int | None) -> None:
        self._context, self._num_steps = context, num_steps
        self._mean: dict[str, torch.Tensor] = {}
        self._count, self._last = 0, 0  # steps in the mean, and the last of them
        self._saved: list[int] = []  # steps of the last two checkpoints, whose means are kept

    def observe(self, use_final_weights: Callable[[], None]) -> None:
        """Add the weights after this step if it is one of those to average.

        Args:
            use_final_weights: That of ``StageOptimizers``.
        """
        context, stage = self._context, self._context.stage
        if self._num_steps is None or context.step <= stage.end_step - self._num_steps:
            return
        use_final_weights()
        assert context.module.net is not None
        if self._last <= stage.first_step:
            self._mean, self._count = {}, 0  # of the previous stage
        self._take_up()
        self._count, self._last = self._count + 1, context.step
        for name, value in changing(context.module.net).items():
            if value.is_floating_point():
                wide = value.detach().float()
                mean = self._mean.setdefault(name, wide.clone())
                mean += (wide - mean) / self._count

    def end_stage(self, ended: StagePlan) -> bool:
        """Replace the weights by the mean; return whether there was one."""
        if self._num_steps is None:
            return False
        if self._last != ended.end_step:
            self._tell(f"Stage {ended.stage.name} ended early: its weights are those of its last step, not averaged")
            return False
        self._take_up()
        assert self._context.module.net is not None
        with torch.no_grad():
            for name, value in changing(self._context.module.net).items():
                if name in self._mean:
                    value.copy_(self._mean[name])
        self._tell(f"Stage {ended.stage.name} ends with the mean of its weights after its last {self._count:,} steps")
        self._mean, self._count, self._last = {}, 0, 0
        return True

    def stage_ended(self) -> None:
        """Remove the mean: the stage's checkpoint is written."""
        if self._num_steps is not None and self._context.trainer.is_global_zero:
            remove_snapshots(self._context.folder / _FOLDER, set())

    def state(self) -> dict[str, int]:
        """Return the state for a checkpoint; save the mean beside it and remove those of older checkpoints."""
        context = self._context
        if self._mean:
            assert context.module.net is not None
            write_tensors(context.module.net, self._mean, self._place(self._last), context.trainer.global_rank)
            self._saved = [*self._saved, self._last][-2:]
            if context.trainer.is_global_zero:
                remove_snapshots(context.folder / _FOLDER, set(self._saved))
        return {"count": self._count, "last": self._last}

    def load(self, state: dict[str, int]) -> None:
        """Restore what ``state`` returned."""
        self._count, self._last = state["count"], state["last"]
        self._saved = [self._last] if self._last else []

    def _take_up(self) -> None:
        """Read the mean of a resumed run, once the model is sharded for training."""
        if self._count and not self._mean:
            net = self._context.module.net
            assert net is not None
            saved = read_tensors(net, self._place(self._last), self._context.trainer.global_rank)
            self._mean = {name: saved[name].to(value.device) for name, value in changing(net).items() if name in saved}

    def _place(self, step: int) -> Path:
        return self._context.folder / _FOLDER / f"step={step:06d}"

    def _tell(self, words: str) -> None:
        if self._context.trainer.is_global_zero:
            show(words)
