"""What TensorBoard's HPARAMS page sets side by side: a run's settings, and what they led to."""

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
    """Scores and held-out losses, of which the table shows the last of each stage: a row a stage, with the settings.

    The row is named as a person would: ``dmt/after/1-general``. Results lie in folders of their own, as TensorBoard
    takes every curve in the folder of the settings, and in those below, for a column of the table. The words for naming
    columns do not do: those of the first of many runs would stand for all, its settings too.

    Args:
        folder: Where the curves of the run are.
        trainer: Of the run.
    """

    def __init__(self, folder: str, trainer: Trainer) -> None:
        super().__init__(folder)
        self._trainer, self._settings = trainer, dict[str, Any]()
        self._writers: dict[str, SummaryWriter] = {}

    @classmethod
    def beside(cls, logger: TensorBoardLogger, context: RunContext) -> None:
        """Let a run with this logger have a table too, and ``hparams.yaml`` with the settings.

        Lightning writes the file before there is a plan, and at the end only where there is none.
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
        """Begin the row of the stage that comes, so that a run without results has one."""
        self._settings = {key: value for key, value in params.items() if value is not None}
        self._events(self._trainer.global_step + 1)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add those that are results to the row of the stage that trained the step."""
        for name, value in metrics.items():
            if name.startswith(_SHOWN):
                self._events(step or 0).add_scalar(f"{_TAG}/{name}", value, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is held back."""
        for writer in self._writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is held back; another fit with the same trainer goes on in files of its own."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _events(self, step: int) -> SummaryWriter:
        """Of the stage that trained a step; before the first, of the stage that comes."""
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
    """The settings of a run by dotted key: of a config all, of plain Python those that are compared most."""
    module, plan = context.module, context.plan
    about: dict[str, Any] = {"model.learning_rate": module.learning_rate, "data.seed": context.data.seed}
    about |= {} if module.config else {"model.path": module.path}  # which config takes the place of
    fractions = {f"{s.stage.name}/{ability}": x for s in plan.stages for ability, x in s.stage.fractions.items()}
    config = context.folder / CONFIG_FILE
    written = dict(flat(read_yaml(config, "config"))) if config.is_file() else {}
    written.pop("ckpt_path", None)  # where a run was resumed is no setting
    named = {"run": context.folder.name, "steps": plan.num_steps}
    return {**about, **(written or fractions), **named}  # other stages are other columns of a table
