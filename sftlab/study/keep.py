"""What a study keeps of runs that are finished: all, the weights of stages, or scores alone.

What is freed is noted in the run's ``freed.json``: the stages still count as done, and a run that comes to the study
later and would have gone on from one of them trains it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sftlab.files import remove_folder, write_text
from sftlab.run.folder import LOGS, is_running
from sftlab.study.freed import FREED_FILE
from sftlab.study.graph import PlannedRun
from sftlab.study.study import Keep


def prune(planned: Sequence[PlannedRun], keep: Keep, needed: Collection[str]) -> tuple[int, int]:
    """Free what finished runs hold beyond what is kept; the number of runs and of bytes.

    Args:
        planned: The runs of a study.
        keep: weights frees checkpoints, with optimizer states; scores also the exported stages.
        needed: Folders of runs that others have yet to go on from; they are left alone.
    """
    num_runs = num_bytes = 0
    for run in planned:
        is_finished = run.num_done() == len(run.stages) and run.folder.is_dir()
        if not is_finished or str(run.folder) in needed or is_running(run.folder):
            continue
        freed = list(_what(run.folder, keep))
        if not freed:
            continue
        write_text(run.folder / FREED_FILE, json.dumps([[s.name, s.end_step, s.key] for s in run.stages], indent=1))
        num_runs += 1
        for path in freed:
            num_bytes += _size(path)
            if path.is_dir():
                remove_folder(path, inside=LOGS)
            else:
                path.unlink()
    return num_runs, num_bytes


def _what(folder: Path, keep: Keep) -> Iterator[Path]:
    if keep == "all":
        return
    yield from sorted((folder / "checkpoints").glob("*.ckpt"))
    if keep == "scores":
        yield from sorted((folder / "stages").glob("*"))


def _size(path: Path) -> int:
    """Bytes that are free once a path is gone; those that another run holds a link to are not."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
