"""Carries out one job of a study: reuses shared stages, then runs ``fit`` in a process of its own.

A run's folder is locked meanwhile, and the lock is passed to ``fit``: if this process is killed, the training continues
to its end, and whoever repeats the job waits for it and finds it done.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sftlab.files import read_jsonl, remove_folder, whole_folder, write_text
from sftlab.processes import end_process
from sftlab.run.folder import FOLDER_VARIABLE, LOGS, complete_checkpoints
from sftlab.study.freed import is_done, stage_ends
from sftlab.study.graph import Job
from sftlab.study.reuse import take_over

_TAIL_LINES = 12
# Runs what ``python -m`` would run with some words, here or elsewhere, with the variables of its process.
Launch = Callable[[Sequence[str], Mapping[str, str]], AbstractContextManager[list[str]]]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: Name of the job.
        error: The last lines of a failed job; empty if it succeeded.
        seconds: Wall-clock time.
    """

    job: str
    error: str
    seconds: float


def here(words: Sequence[str], variables: Mapping[str, str]) -> AbstractContextManager[list[str]]:
    """Run a process on this machine."""
    return nullcontext([sys.executable, "-m", *words])


def carry_out(
    job: Job, environment: Mapping[str, str], stop: threading.Event | None = None, launch: Launch = here
) -> Outcome:
    """Carry out a job; what an earlier, killed attempt has finished is kept.

    Args:
        job: The job.
        environment: Variables of the training process, such as threads and devices, added to this process's own.
        stop: Set by another thread to end the training early; its last checkpoint stays.
        launch: Starts the training.
    """
    start = time.perf_counter()
    folder = Path(job.folder)
    place = folder.parents[1] / "locks" / f"{folder.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = _num_done(job, folder)
        if done < job.num_shared:
            take_over(folder, Path(job.source), job.stages[: job.num_shared], job.num_shared == len(job.stages))
            done = job.num_shared
        error = ""
        if done < len(job.stages):
            start_of_fit = time.perf_counter()
            error = _fit(job, folder, environment, stop, lock.fileno(), launch)
            if not error:
                _save_overhead(job, folder, time.perf_counter() - start_of_fit)
    return Outcome(job.name, error, time.perf_counter() - start)


def overhead_files(study_folder: Path) -> list[Path]:
    """Return files with the seconds that jobs of a study took outside their stages: start, data, model."""
    return sorted(study_folder.glob("logs/*.overhead.json"))


def _save_overhead(job: Job, folder: Path, seconds: float) -> None:
    ends = stage_ends(folder, job.stages)
    mine = {ends[stage.name] for stage in job.stages[job.num_before :] if stage.name in ends}
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line.get("step") in mine]
    overhead = max(0.0, seconds - sum(line.get("stage/seconds", 0.0) for line in lines))
    write_text(folder.parents[1] / "logs" / f"{job.name}.overhead.json", json.dumps({"seconds": round(overhead, 2)}))


def _num_done(job: Job, folder: Path) -> int:
    have = [is_done(folder, stage) for stage in job.stages]
    return next((i for i, complete in enumerate(have) if not complete), len(have))


def _fit(
    job: Job, folder: Path, environment: Mapping[str, str], stop: threading.Event | None, lock: int, launch: Launch
) -> str:
    """Train up to the job's last stage; return the last lines of the log if that fails."""
    checkpoints = complete_checkpoints(folder)
    if not checkpoints:
        remove_folder(folder, inside=LOGS)
    words = ["sftlab", "fit", "--config", job.config_file, "--trainer.max_steps", str(job.stages[-1].end_step)]
    words += ["--ckpt_path", str(checkpoints[-1])] if checkpoints else []
    log = folder.parents[1] / "logs" / f"{job.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    variables = {**environment, FOLDER_VARIABLE: str(folder)}
    with log.open("wb") as file, launch(words, variables) as command:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**inherited, **variables}, pass_fds=[lock], start_new_session=True
        )
        while process.poll() is None:
            if stop is not None and stop.wait(0.1):
                end_process(process)
                return "interrupted"
            if stop is None:
                process.wait()
    if process.returncode == 0:
        return ""
    return last_lines(log, process.returncode)


def last_lines(log: Path, status: int) -> str:
    """Describe a failed process by its exit status and the last lines of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"exit status {status}; the whole log is {log}", *lines[-_TAIL_LINES:]])


def write_jobs(jobs: list[Job], folder: Path) -> None:
    """Write one file per job, for users who start jobs themselves."""
    with whole_folder(folder) as unfinished:
        for job in jobs:
            (unfinished / f"{job.name}.json").write_text(json.dumps(job.to_dict(), indent=1), encoding="utf-8")


def read_job(path: Path) -> Job:
    """Read a job from its file.

    Raises:
        ValueError: The file is not a job.
    """
    try:
        return Job.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"--job: {path} is not a job of a study ({error}); --executor print writes them") from None
