"""What a study keeps of finished runs: everything, the weights of stages, or only scores.

What is freed is recorded in the run's ``freed.json``: the stages still count as done, but a run that is added to the
study later and would continue from one of them trains it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sftlab.files import remove_folder, write_text
from sftlab.run.folder import LOGS, is_running, remove_partials
from sftlab.study.freed import FREED_FILE
from sftlab.study.graph import PlannedRun
from sftlab.study.study import Keep


def prune(planned: Sequence[PlannedRun], keep: Keep, needed: Collection[str]) -> tuple[int, int]:
    """Remove what finished runs hold beyond what is kept; return the number of runs and of bytes.

    Args:
        planned: The runs of a study.
        keep: "weights" removes checkpoints, with optimizer states; "scores" also the exported stages.
        needed: Folders of runs from which others will continue; they are left alone.
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


def remove_leftovers(planned: Sequence[PlannedRun]) -> None:
    """Remove what a kill at their very end left half-written in finished runs, which nothing resumes."""
    for run in planned:
        if run.num_done() == len(run.stages) and not is_running(run.folder):
            remove_partials(run.folder)


def _what(folder: Path, keep: Keep) -> Iterator[Path]:
    if keep == "all":
        return
    yield from sorted((folder / "checkpoints").glob("*.ckpt"))
    if keep == "scores":
        yield from sorted((folder / "stages").glob("*"))


def _size(path: Path) -> int:
    """Return the bytes that removing a path frees; files that another run links to do not count."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
