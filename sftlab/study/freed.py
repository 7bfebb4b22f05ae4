"""Stages whose checkpoints were freed: a note in a run's folder, so that they still count as done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from sftlab.model.contents import is_whole
from sftlab.run.folder import checkpoint_path, owed_scores

FREED_FILE = "freed.json"


class Finished(Protocol):
    """What these functions need of a stage of a run."""

    @property
    def name(self) -> str:
        """The stage's name."""

    @property
    def key(self) -> str:
        """The key of what is trained and measured."""

    @property
    def end_step(self) -> int:
        """The run's optimizer steps at its end."""


def has_checkpoint(folder: Path, stage: Finished) -> bool:
    """Return whether another run can continue from a stage, with all of its scores measured."""
    owed = any(entry.get("step") == stage.end_step for entry in owed_scores(folder))
    return not owed and is_whole(checkpoint_path(folder, stage.end_step, stage.name))


def is_done(folder: Path, stage: Finished) -> bool:
    """Return whether a run has finished a stage, whatever was freed since."""
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
