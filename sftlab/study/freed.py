"""Which stages of a run are done: their checkpoints are there, or were freed, which a note in its folder says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sftlab.files import read_jsonl
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
        """Optimizer steps of the run at its end, as planned."""


def end_of(folder: Path, stage: Finished) -> int:
    """Return the optimizer steps at the end of a stage of the run in a folder: fewer than planned if it ended early."""
    name = re.compile(rf"step=(\d+)-{re.escape(stage.name)}\.ckpt")
    found = [name.fullmatch(path.name) for path in checkpoint_path(folder, 0).parent.glob("step=*.ckpt")]
    steps = [int(match[1]) for match in found if match is not None]
    return max((step for step in steps if step <= stage.end_step), default=stage.end_step)


def stage_ends(folder: Path, stages: Sequence[Finished]) -> dict[str, int]:
    """Return the optimizer steps at the ends of the stages that a run has finished, as its metrics say."""
    steps = {line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "stage/seconds" in line}
    return {stage.name: step for stage, step in zip(stages, sorted(steps), strict=False)}


def has_checkpoint(folder: Path, stage: Finished) -> bool:
    """Return whether another run can continue from a stage, with all of its scores measured."""
    end_step = end_of(folder, stage)
    owed = any(entry.get("step") == end_step for entry in owed_scores(folder))
    return not owed and is_whole(checkpoint_path(folder, end_step, stage.name))


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
