"""The checkpoints inside stages, from which a killed run goes on; those at stage ends are the conductor's."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sftlab.bounds import within


class RunCheckpoint(ModelCheckpoint):
    """Saves the run now and then; every run has one. A ModelCheckpoint of your own stands beside it.

    Args:
        every_n_steps: Optimizer steps from one to the next.
        keep_all: Keep each of them; otherwise the newest takes the place of the one before.
    """

    def __init__(self, every_n_steps: int = 500, keep_all: bool = False) -> None:
        within("RunCheckpoint.every_n_steps", every_n_steps, 1, is_whole=True)
        super().__init__(filename="{step:06d}", every_n_train_steps=every_n_steps, save_top_k=-1 if keep_all else 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Into the run's folder, whatever loggers there are."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)
