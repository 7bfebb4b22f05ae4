"""Run folders: lightning_logs/<name>, one per run, and the checkpoints in them."""

from __future__ import annotations

import os
import re
from pathlib import Path

LOGS = Path("lightning_logs")
_LAUNCHED = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set for processes that a launcher starts side by side
_CHOSEN = "SFTLAB_RUN_FOLDER"  # how a process that launches its own ranks tells them


def new_run_folder(name: str) -> Path:
    """A folder for a new run: lightning_logs/<name>, or <name>-2 and so on where one is in use.

    Processes started side by side by torchrun or srun cannot agree on a free number, so there the plain name is used.

    Raises:
        ValueError: Started by torchrun or srun into a folder that has a run already.
    """
    if _CHOSEN in os.environ:
        return Path(os.environ[_CHOSEN])
    folder = LOGS / name
    if any(variable in os.environ for variable in _LAUNCHED):
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        if _in_use(folder) and not restarted and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            raise ValueError(f"--run: {folder} holds a run already; name another, or go on with --ckpt_path last")
        return folder
    number = 2
    while _in_use(folder):
        folder, number = LOGS / f"{name}-{number}", number + 1
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_CHOSEN] = str(folder)
    return folder


def _in_use(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def run_of_checkpoint(name: str, checkpoint: str, is_exact: bool = False) -> Path:
    """The checkpoint that ``--ckpt_path`` means: a path, or ``last``, the newest complete one of the newest run.

    Runs of that name are also those with a number after it, unless ``is_exact``.

    Raises:
        ValueError: There is none.
    """
    if checkpoint != "last":
        path = Path(checkpoint)
        if not is_complete(path):
            raise ValueError(f"--ckpt_path: {path} is no complete checkpoint")
        return path
    pattern = re.escape(name) if is_exact else rf"{re.escape(name)}(-\d+)?"
    runs = [path for path in LOGS.glob(f"{name}*") if re.fullmatch(pattern, path.name)]
    for run in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        if checkpoints := complete_checkpoints(run):
            return checkpoints[-1]
    raise ValueError(f"--ckpt_path last: no run named {name} with a complete checkpoint in {LOGS}/ (see --run)")


def checkpoint_path(folder: Path, step: int, stage: str = "") -> Path:
    """Where the checkpoint after ``step`` optimizer steps goes: checkpoints/step=000123-specialised.ckpt."""
    return folder / "checkpoints" / f"step={step:06d}{'-' + stage if stage else ''}.ckpt"


def complete_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run in the order of their steps."""
    found = [path for path in (run / "checkpoints").glob("step=*.ckpt") if is_complete(path)]
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> tuple[int, bool]:
    match = re.match(r"step=(\d+)(-.+)?\.ckpt", path.name)
    return (int(match[1]), bool(match[2])) if match else (-1, False)


def is_complete(path: Path) -> bool:
    """A file appears under its name only when complete; a folder of shards is complete once its last file is there."""
    return path.is_file() or ((path / ".metadata").is_file() and (path / "meta.pt").is_file())
