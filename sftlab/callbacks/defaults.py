"""The options, loggers and callbacks that every run has unless the user chose others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.ledger import Ledger
from sftlab.callbacks.metrics import JsonlLogger, Metrics
from sftlab.callbacks.monitors import refuse_places
from sftlab.callbacks.progress import ScreenProgress
from sftlab.callbacks.schedule import StageSchedule
from sftlab.callbacks.scores import ScoreAbilities
from sftlab.model.parallel import best_precision

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}


def run_options(asked: Any, folder: Path, schedule: StageSchedule) -> dict[str, Any]:
    """Return the arguments of the Trainer that give a run its folder, loggers and callbacks.

    Args:
        asked: The user's arguments of the Trainer, as attributes.
        folder: The run's folder.
        schedule: The run's schedule.

    Raises:
        ValueError: A folder that the user wants to write to is not writable.
    """
    given = as_list(asked.callbacks)
    refuse_places([asked.profiler, *given, *as_list(asked.logger)])
    callbacks = [*given, *_default_callbacks(given, asked), schedule]
    options: dict[str, Any] = {
        "default_root_dir": str(folder),
        "logger": _loggers(asked.logger, folder),
        "callbacks": callbacks,
    }
    if asked.precision is None:
        options["precision"] = best_precision()
    if any(isinstance(callback, ScreenProgress) for callback in callbacks):
        options["enable_progress_bar"] = True  # ScreenProgress hides the bar itself
    return options


def as_list(given: Any) -> list[Any]:
    """Return a list of callbacks or loggers as given: a list, a single one, or none."""
    return given if isinstance(given, list) else [given] if given else []


def _loggers(given: Any, folder: Path) -> list[Logger]:
    """Return our loggers, which define the run's folder, then the user's."""
    added = given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
    board = TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
    return [*([] if given is False else [board]), JsonlLogger(str(folder)), *added]


def _default_callbacks(given: list[Callback], options: Any) -> list[Callback]:
    """Return the callbacks that every run has, unless the user configured one of the same kind."""
    defaults: list[tuple[type, Callback]] = [
        (Metrics, Metrics()),
        (ScoreAbilities, ScoreAbilities()),
        (Ledger, Ledger()),
        (ProgressBar, ScreenProgress(show_bar=options.enable_progress_bar is not False)),
    ]
    if options.enable_checkpointing is not False:
        defaults.append((RunCheckpoint, RunCheckpoint()))
    return [ours for kind, ours in defaults if not any(isinstance(callback, kind) for callback in given)]
