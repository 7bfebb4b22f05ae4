"""Stages whose checkpoints were freed: a note in a run's folder, so that they still count as done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from sftlab.model.contents import is_whole
from sftlab.run.folder import checkpoint_path, owed_scores

FREED_FILE = "freed.json"


class Finished(Protocol):
    """What is asked of a stage of a run."""

    @property
    def name(self) -> str:
        """The stage's."""

    @property
    def key(self) -> str:
        """What is trained and measured."""

    @property
    def end_step(self) -> int:
        """Optimizer steps of the run at its end."""


def has_checkpoint(folder: Path, stage: Finished) -> bool:
    """Whether another run can go on from a stage of the run in a folder, all of its scores measured."""
    owed = any(entry.get("step") == stage.end_step for entry in owed_scores(folder))
    return not owed and is_whole(checkpoint_path(folder, stage.end_step, stage.name))


def is_done(folder: Path, stage: Finished) -> bool:
    """Whether the run in a folder has finished a stage, whatever was freed since."""
    return has_checkpoint(folder, stage) or [stage.name, stage.end_step, stage.key] in _freed(folder)


def _freed(folder: Path) -> list[list[object]]:
    path = folder / FREED_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{path} is damaged: delete it, and the run's stages are trained again")
    return found
