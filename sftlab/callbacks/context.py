"""RunContext: what callbacks can know about their run: folder, data, module and plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sftlab.data.ability import PlannedData
from sftlab.model.export import ARCHITECTURE, export_live
from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan
from sftlab.run.folder import new_run_folder


@dataclass(frozen=True, eq=False)
class RunContext:
    """A run, as callbacks see it. Get it by ``RunContext.of(trainer)`` once a schedule has compiled its plan.

    Attributes:
        trainer: Lightning's Trainer.
        folder: The run's folder, for checkpoints, stages and results.
        data: The datamodule.
        module: The model.
        plan: The plan; of an adaptive schedule, as far as it has been compiled.
    """

    trainer: Trainer
    folder: Path
    data: PlannedData
    module: SFTModule
    plan: Plan

    @classmethod
    def of(cls, trainer: Trainer) -> RunContext:
        """Return the run of a trainer.

        Raises:
            ValueError: No schedule is among the trainer's callbacks.
        """
        for callback in cast(Any, trainer).callbacks:
            if isinstance(context := getattr(callback, "context", None), cls):
                return context
        raise ValueError(
            "this callback needs a plan, and no schedule compiles one: Trainer(callbacks=[DMT(k=0.25), ...]), or write "
            "one under schedule: in the config"
        )

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.trainer.global_step

    @property
    def stage(self) -> StagePlan:
        """The stage of the last optimizer step; before training, the first stage."""
        return self.plan.stage_at(max(0, self.step - 1))

    def stage_folder(self, stage: StagePlan) -> Path:
        """The folder that a stage is exported to, such as stages/0-specialised."""
        return self.folder / "stages" / f"{self.plan.stages.index(stage)}-{stage.stage.name}"

    def ends_step(self, batch_idx: int) -> bool:
        """Return whether a micro-batch is the last one of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def is_due_inside(self, batch_idx: int, every_n_steps: int | None) -> bool:
        """Return whether this micro-batch ended an n-th optimizer step that is not the end of a stage."""
        if not every_n_steps or self.step % every_n_steps or not self.ends_step(batch_idx):
            return False
        return self.plan.stage_ending_at(self.step) is None

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics to every logger, at the current step or a given one."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.step if step is None else step)

    def export(self, folder: Path) -> None:
        """Export the current model as a Hugging Face folder. Call it on every rank."""
        export_live(self.trainer, self.module, folder, self.folder / ARCHITECTURE, self.plan, self.step)


def data_of(trainer: Trainer) -> PlannedData:
    """Return the datamodule of a trainer.

    Raises:
        ValueError: It is not a ``PlannedData``.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PlannedData):
        raise ValueError("fit needs datamodule=MixtureData(...) or a single ability such as MathData(...)")
    return data


def module_of(module: LightningModule) -> SFTModule:
    """Return the module of a trainer.

    Raises:
        ValueError: It is not an ``SFTModule``.
    """
    if not isinstance(module, SFTModule):
        raise ValueError(f"fit needs an SFTModule, not {type(module).__name__}: a schedule trains by its losses")
    return module


def folder_of(trainer: Trainer) -> Path:
    """Return the folder of the first logger that has its own, else the trainer's; never a folder that runs share."""
    place: str | None = None
    for logger in reversed(trainer.loggers):
        if isinstance(logger, (TensorBoardLogger, CSVLogger)):
            place = logger.log_dir
        elif type(logger).__module__.startswith("sftlab."):
            place = logger.save_dir
    if place is None and Path(trainer.default_root_dir).resolve() != Path.cwd():
        place = trainer.default_root_dir
    if place is None and trainer.is_global_zero:
        place = str(new_run_folder("run"))
    return Path(trainer.strategy.broadcast(str(place)))
