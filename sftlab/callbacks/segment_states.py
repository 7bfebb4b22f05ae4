"""States of an adaptive stage that a decision may return to: weights and optimizer after certain segments.

segments/step=000040    a checkpoint without the run's own part: one file, or a folder of shards where they are sharded
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from sftlab.callbacks.context import RunContext
from sftlab.files import discard, remove_stale
from sftlab.model.contents import contents
from sftlab.model.parallel import FSDP2Strategy
from sftlab.plan.adaptive import Decision

_FOLDER = "segments"


class SegmentStates:
    """Saves the states that decisions name, restores one, and removes those that no decision can return to any more.

    Args:
        context: The run.
        use_final_weights: That of ``StageOptimizers``.
    """

    def __init__(self, context: RunContext, use_final_weights: Callable[[], None]) -> None:
        self._context, self._use_final_weights, self._folder = context, use_final_weights, context.folder / _FOLDER

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Save, restore and remove states as the last decision requires. Call it on every rank.

        Raises:
            OSError: A state cannot be written.
            ValueError: The state to return to is not there.
        """
        last = decisions[-1]
        if not last.is_plain:
            self._use_final_weights()
        if self._context.step in last.keep:
            self._write(self._context.step)
        if last.return_to is not None:
            self._read(last.return_to)
        if isinstance(strategy := self._context.trainer.strategy, FSDP2Strategy):
            strategy.finish_saving()  # a checkpoint still being written needs its states too
        if self._context.trainer.is_global_zero and self._folder.is_dir():
            self._remove(but=set(last.keep) | self._resumable(decisions))

    def stage_ended(self) -> None:
        """The stage's checkpoint is written, and no decision follows: remove all states."""
        if self._context.trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _resumable(self, decisions: Sequence[Decision]) -> set[int]:
        """Return the steps of the states that a resume from any checkpoint in the run's folder needs.

        After a resume from an older checkpoint, newer ones need states of decisions that were not made again yet.
        """
        needed, newest = set[int](), 0
        for path in (self._context.folder / "checkpoints").glob("*.ckpt"):
            if (found := re.search(r"step=(\d+)", path.name)) is None:
                continue
            step = int(found[1])
            newest = max(newest, step)
            before = [one.keep for one in decisions if one.observations.step < step][-1:]
            at = [one.keep for one in decisions if one.observations.step == step]
            needed |= {kept for keep in (*before, *at) for kept in keep}
        return needed | {step for step in self._steps() if self._context.step < step <= newest}

    def _steps(self) -> dict[int, Path]:
        return {int(path.name.removeprefix("step=")): path for path in self._folder.glob("step=*[0-9]")}

    def _remove(self, but: set[int]) -> None:
        remove_stale(self._folder)
        for step, path in self._steps().items():
            if step not in but:
                discard(path)

    def _place(self, step: int) -> Path:
        return self._folder / f"step={step:06d}"

    def _write(self, step: int) -> None:
        trainer, module = self._context.trainer, self._context.module
        state: dict[str, Any] = {
            "global_step": step,
            "state_dict": trainer.strategy.lightning_module_state_dict(),
            "optimizer_states": [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
        }
        module.on_save_checkpoint(state)
        trainer.strategy.save_checkpoint(state, self._place(step))
        trainer.strategy.barrier("state of a segment")

    def _read(self, step: int) -> None:
        trainer, module, path = self._context.trainer, self._context.module, self._place(step)
        try:
            contents(path)
        except ValueError as error:
            raise ValueError(
                f"{error}: the state after step {step:,}, which the stage returns to, is lost. Go on from a checkpoint "
                f"of step {step:,} or before, or from the newest one"
            ) from None
        # Validation runs in inference mode; tensors created in it could not be trained.
        with torch.inference_mode(False), torch.no_grad():
            state = trainer.strategy.load_checkpoint(path)
            module.on_load_checkpoint(state)
            trainer.strategy.load_model_state_dict(state, strict=cast(bool, module.strict_loading))
            trainer.strategy.load_optimizer_state_dict(state)
        trainer.strategy.barrier("state of a segment read")
