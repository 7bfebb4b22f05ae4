"""The config of a run, in its folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from sftlab.files import write_text
from sftlab.run.folder import CONFIG_FILE


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run's folder when training starts, so that a refused resume changes nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: only after the checkpoint is read is it known whether it belongs to this run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on one rank."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically; it is a valid config of fit."""
        write_text(Path(trainer.default_root_dir) / CONFIG_FILE, self.parser.dump(self.config, skip_none=False))
