"""The rows of TensorBoard's HPARAMS page: a run's settings, and the scores and losses they led to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.folder_logger import FolderLogger
from sftlab.credentials import flat
from sftlab.files import write_text
from sftlab.run.folder import CONFIG_FILE
from sftlab.yaml_files import read_yaml

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_FOLDER, _TAG = "after", "result"
_SHOWN = ("score/", "val/loss/")


class StageResults(FolderLogger):
    """Scores and held-out losses after each stage: one row per stage, with the settings.

    A row has a readable name: ``dmt/after/1-general``. Results have folders of their own because TensorBoard makes a
    column of every curve in the folder of the settings and below it. Declaring the columns instead does not work: with
    many runs, the first run's declaration would apply to all, including its settings.

    Args:
        folder: The folder of the run's curves.
        trainer: The run's Trainer.
    """

    def __init__(self, folder: str, trainer: Trainer) -> None:
        super().__init__(folder)
        self._trainer, self._settings = trainer, dict[str, Any]()
        self._writers: dict[str, SummaryWriter] = {}

    @classmethod
    def beside(cls, logger: TensorBoardLogger, context: RunContext) -> None:
        """Add a table and ``hparams.yaml`` with the settings to a run with this logger.

        Lightning writes this file before the plan exists, and at the end only if the file is missing.
        """
        loggers = context.trainer.loggers
        mine = next((one for one in loggers if isinstance(one, cls) and one.save_dir == logger.log_dir), None)
        if mine is None:
            mine = cls(logger.log_dir, context.trainer)
            context.trainer.loggers = [*loggers, mine]
        settings = hyperparameters(context)
        if context.trainer.is_global_zero:
            Path(logger.log_dir).mkdir(parents=True, exist_ok=True)
            write_text(Path(logger.log_dir) / logger.NAME_HPARAMS_FILE, yaml.safe_dump(settings, allow_unicode=True))
        mine.log_hyperparams(settings)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the row of the next stage, so that a run without results has one."""
        self._settings = {key: value for key, value in params.items() if value is not None}
        self._events(self._trainer.global_step + 1)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the results among these metrics to the row of the stage that trained the step."""
        for name, value in metrics.items():
            if name.startswith(_SHOWN):
                self._events(step or 0).add_scalar(f"{_TAG}/{name}", value, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush."""
        for writer in self._writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close; another fit with the same trainer starts new files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _events(self, step: int) -> SummaryWriter:
        """Return the writer of the stage that trained a step; before the first step, of the next stage."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        plan = RunContext.of(self._trainer).plan
        number = plan.stage_index(max(0, step - 1))
        stage = plan.stages[number].stage.name
        folder = f"{number}-{stage}"
        if folder not in self._writers:
            writer = SummaryWriter(str(self.folder / _FOLDER / folder))  # type: ignore[no-untyped-call]
            _, start, _ = hparams({**self._settings, "stage": stage}, {})
            writer._get_file_writer().add_summary(start)  # type: ignore[no-untyped-call]
            self._writers[folder] = writer
        return self._writers[folder]


def hyperparameters(context: RunContext) -> dict[str, Any]:
    """Return the settings of a run by dotted key: all of a config; from plain Python, the most compared ones."""
    module, plan = context.module, context.plan
    about: dict[str, Any] = {"model.learning_rate": module.learning_rate, "data.seed": context.data.seed}
    about |= {} if module.config else {"model.path": module.path}  # replaced by config
    fractions = {f"{s.stage.name}/{ability}": x for s in plan.stages for ability, x in s.stage.fractions.items()}
    config = context.folder / CONFIG_FILE
    written = dict(flat(read_yaml(config, "config"))) if config.is_file() else {}
    written.pop("ckpt_path", None)  # where a run was resumed from is not a setting
    named = {"run": context.folder.name, "steps": plan.num_steps}
    return {**about, **(written or fractions), **named}  # the stages make other columns of the table
