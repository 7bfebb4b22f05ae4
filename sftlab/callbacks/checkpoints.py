"""The checkpoints inside stages, from which a killed run goes on; those at stage ends are the conductor's."""

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
    """Saves the run now and then; every run has one. A ModelCheckpoint of your own stands beside it.

    Args:
        every_n_steps: Optimizer steps from one to the next.
        keep_last: How many are kept, the newest; null keeps all. Those at stage ends are kept always.
        asynchronous: Under FSDP2, write them while training goes on, from a copy in memory. Elsewhere, and at stage
            ends, training waits.
    """

    def __init__(self, every_n_steps: int = 500, keep_last: int | None = 1, asynchronous: bool = False) -> None:
        within("RunCheckpoint.every_n_steps", every_n_steps, 1, is_whole=True)
        if keep_last is not None:
            within("RunCheckpoint.keep_last", keep_last, 1, 1_000_000, is_whole=True)
        # The step is the name: one that is reached again, from an earlier checkpoint, takes the other's place.
        names: dict[str, Any] = {"filename": "{step:06d}", "enable_version_counter": False}
        super().__init__(every_n_train_steps=every_n_steps, save_top_k=-1, **names)
        self.keep_last, self.asynchronous = keep_last, asynchronous
        self._kept: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Into the run's folder, whatever loggers there are."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        with warnings.catch_warnings():  # of a run that goes on
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if self.asynchronous and not isinstance(trainer.strategy, FSDP2Strategy) and trainer.is_global_zero:
            show("RunCheckpoint.asynchronous: only under strategy: fsdp2; here training waits for each checkpoint")

    def on_train_batch_end(self, trainer: Trainer, *batch: Any) -> None:
        """Save inside a stage; at its end the conductor does."""
        if RunContext.of(trainer).plan.stage_ending_at(trainer.global_step) is None:
            super().on_train_batch_end(trainer, *batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last one, which says whether it could be written."""
        super().on_train_end(trainer, pl_module)
        if isinstance(trainer.strategy, FSDP2Strategy):
            trainer.strategy.finish_saving()

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save, then remove what is more than ``keep_last``: only what this callback saved itself, in this folder."""
        # Before saving, so that the checkpoint knows of itself and a resumed run removes it in its turn.
        self._kept = [name for name in self._kept if name != Path(filepath).name] + [Path(filepath).name]
        strategy: Any = trainer.strategy
        strategy.saves_asynchronously = self.asynchronous
        super()._save_checkpoint(trainer, filepath)
        strategy.saves_asynchronously = False
        while self.keep_last is not None and len(self._kept) > self.keep_last:
            self._remove_checkpoint(trainer, str(Path(filepath).with_name(self._kept.pop(0))))

    def state_dict(self) -> dict[str, Any]:
        """With the names of the files that are kept."""
        return {**super().state_dict(), _KEPT: list(self._kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Files of another folder stay where they are: they are not this run's to remove."""
        super().load_state_dict(state_dict)
        if state_dict.get("dirpath") == self.dirpath:
            self._kept = list(state_dict.get(_KEPT, []))
