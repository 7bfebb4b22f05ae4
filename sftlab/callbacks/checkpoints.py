"""Checkpoints inside stages, for resuming a killed run; the conductor saves those at stage ends."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sftlab.bounds import within
from sftlab.callbacks.context import RunContext
from sftlab.model.parallel import FSDP2Strategy
from sftlab.screen import show

_KEPT = "kept"


class RunCheckpoint(ModelCheckpoint):
    """Saves the run at intervals; every run has one. You may add ModelCheckpoints of your own.

    Args:
        every_n_steps: Optimizer steps between two checkpoints.
        keep_last: Number of checkpoints to keep, the newest ones; null keeps all. Those at stage ends are always kept.
        asynchronous: Under FSDP2, write checkpoints in the background from a copy in memory. With other strategies,
            and at stage ends, training waits.

    Raises:
        ValueError: A number is out of bounds.
    """

    def __init__(self, every_n_steps: int = 500, keep_last: int | None = 1, asynchronous: bool = False) -> None:
        within("RunCheckpoint.every_n_steps", every_n_steps, 1, is_whole=True)
        if keep_last is not None:
            within("RunCheckpoint.keep_last", keep_last, 1, 1_000_000, is_whole=True)
        # Named by step: when a step is reached again from an earlier checkpoint, its checkpoint is replaced.
        names: dict[str, Any] = {"filename": "{step:06d}", "enable_version_counter": False}
        super().__init__(every_n_train_steps=every_n_steps, save_top_k=-1, **names)
        self.keep_last, self.asynchronous = keep_last, asynchronous
        self._kept: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save into the run's folder, whatever the loggers are."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        with warnings.catch_warnings():  # the folder of a resumed run
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if self.asynchronous and not isinstance(trainer.strategy, FSDP2Strategy) and trainer.is_global_zero:
            show("RunCheckpoint.asynchronous: only under strategy: fsdp2; here training waits for each checkpoint")

    def on_train_batch_end(self, trainer: Trainer, *batch: Any) -> None:
        """Save inside a stage; the conductor saves at its end."""
        if RunContext.of(trainer).plan.stage_ending_at(trainer.global_step) is None:
            super().on_train_batch_end(trainer, *batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for an asynchronous checkpoint; raise its error if it could not be written."""
        super().on_train_end(trainer, pl_module)
        if isinstance(trainer.strategy, FSDP2Strategy):
            trainer.strategy.finish_saving()

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save, then remove all but the newest ``keep_last`` of the checkpoints that this callback saved here."""
        # Before saving, so that the checkpoint lists itself and a resumed run can remove it later.
        self._kept = [name for name in self._kept if name != Path(filepath).name] + [Path(filepath).name]
        strategy: Any = trainer.strategy
        strategy.saves_asynchronously = self.asynchronous
        super()._save_checkpoint(trainer, filepath)
        strategy.saves_asynchronously = False
        while self.keep_last is not None and len(self._kept) > self.keep_last:
            self._remove_checkpoint(trainer, str(Path(filepath).with_name(self._kept.pop(0))))

    def state_dict(self) -> dict[str, Any]:
        """The state with the names of the kept files."""
        return {**super().state_dict(), _KEPT: list(self._kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the names of the kept files, unless they are in another run's folder, which is left alone."""
        super().load_state_dict(state_dict)
        if state_dict.get("dirpath") == self.dirpath:
            self._kept = list(state_dict.get(_KEPT, []))
