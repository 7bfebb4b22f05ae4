"""Reusing stages: what one run has after a stage becomes another run's, as hard links to the same files.

stages/0-specialised/     the exported model            checkpoints/step=001317-specialised.ckpt
answers/step=001317-../   every answer and verdict      scores.jsonl, metrics.jsonl: the lines up to that step
reused.json               which stages came from where; `fit` goes on from a checkpoint of another run only if its stage
                          stands there and both give it one key
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from sftlab.files import jsonl_until, remove_folder, write_text
from sftlab.run.folder import LOGS, checkpoint_path
from sftlab.run.identity import REUSED_FILE
from sftlab.study.freed import end_of, is_done
from sftlab.study.graph import StageNode

_WHOLE = (
    "config.yaml",
    "ledger.json",
    "exposures.parquet",
    "decisions.jsonl",
    "kept.jsonl",
)  # in the folder of a run that reuses all of its stages


def take_over(target: Path, source: Path, stages: Sequence[StageNode], is_all: bool) -> None:
    """Give the run in ``target`` the first stages of the run in ``source``; the last checkpoint comes last.

    Args:
        target: Folder of a run; its finished stages stay, since others may be reading them.
        source: Folder of a run that has finished ``stages``.
        stages: The stages that both share.
        is_all: Whether the target has no other stage to train.
    """
    if not is_done(target, stages[0]):
        remove_folder(target, inside=LOGS)
    target.mkdir(parents=True, exist_ok=True)
    ends = [end_of(source, stage) for stage in stages]
    last_step = ends[-1]
    notes = [{"stage": stage.name, "key": stage.trained_key, "run": source.name} for stage in stages]
    write_text(target / REUSED_FILE, json.dumps(notes, indent=1))
    for name in ("scores.jsonl", "metrics.jsonl"):
        if (source / name).is_file():
            write_text(target / name, jsonl_until(source / name, last_step))
    linked = [Path("architecture"), *(Path("stages") / f"{i}-{stage.name}" for i, stage in enumerate(stages))]
    for path in source.glob("answers/step=*"):
        if int(re.sub(r"\D.*", "", path.name.removeprefix("step="))) <= last_step:
            linked.append(path.relative_to(source))
    linked += [Path(name) for name in _WHOLE if is_all]
    linked += [checkpoint_path(Path(), end, stage.name) for end, stage in zip(ends, stages, strict=True)]
    for path in linked:
        if (source / path).exists() and not (target / path).exists():
            _link(source / path, target / path)


def _link(source: Path, target: Path) -> None:
    """Create a hard link, or a copy if the file system has none; a folder file by file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
