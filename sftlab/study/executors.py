"""Who carries out the jobs: this machine, a Ray cluster, or a scheduler of the user's own.

All of them start a job once those that it needs are done, go on with the rest when one fails, and say who waits in
vain.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sftlab.study.graph import Job
from sftlab.study.job import Outcome, carry_out

Tell = Callable[[Job, Outcome | None], None]  # None when the job starts
_SKIPPED = "not started: {} failed"


def run_local(jobs: Sequence[Job], num_workers: int, tell: Tell) -> list[Outcome]:
    """Run jobs as processes of this machine, ``num_workers`` at a time, with its threads (and GPUs) divided.

    An interrupt ends the running jobs; what their last checkpoints hold is kept.
    """
    slots, stop = list(range(num_workers)), threading.Event()
    lock = threading.Lock()

    def work(job: Job) -> Outcome:
        with lock:
            slot = slots.pop(0)
        try:
            return carry_out(job, _share_of_machine(slot, num_workers), stop)
        finally:
            with lock:
                slots.append(slot)

    with ThreadPoolExecutor(num_workers) as pool:
        try:
            return list(_as_needed(jobs, lambda job: pool.submit(work, job), _first_done, tell, num_workers))
        finally:
            stop.set()


def _share_of_machine(slot: int, num_workers: int) -> dict[str, str]:
    if num_workers == 1:
        return {}
    import torch

    threads = max(1, (os.cpu_count() or 1) // num_workers)
    share = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    if torch.cuda.device_count() >= num_workers:
        mine = range(slot, torch.cuda.device_count(), num_workers)
        share["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
    return share


def _first_done(running: dict[Future, Job]) -> Future:
    return next(iter(wait(running, return_when=FIRST_COMPLETED).done))


def run_ray(jobs: Sequence[Job], address: str, num_cpus: float, num_gpus: float, tell: Tell) -> list[Outcome]:
    """Run jobs as tasks of a Ray cluster whose nodes share this folder.

    Args:
        jobs: In an order in which none stands before what it needs.
        address: Of the cluster (``auto``, ``ray://host:10001``); empty starts one on this machine.
        num_cpus: Cores that one job takes.
        num_gpus: GPUs that one job takes.
        tell: Called when a job starts and ends.

    Raises:
        ValueError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--executor ray needs the extra: pip install 'sftlab[ray]'") from None
    where, threads = os.getcwd(), str(max(1, int(num_cpus)))
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"--ray_address: no cluster at {address!r}: {error}") from None

    def in_folder(content: dict[str, Any]) -> Outcome:
        os.chdir(where)
        return carry_out(Job.from_dict(content), {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads})

    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(in_folder)

    class _Done:
        def __init__(self, reference: Any) -> None:
            self.reference = reference

        def result(self) -> Outcome:
            return ray.get(self.reference)

    def first_done(running: dict[_Done, Job]) -> _Done:
        ready, _ = ray.wait([done.reference for done in running], num_returns=1)
        return next(done for done in running if done.reference == ready[0])

    try:
        return list(_as_needed(jobs, lambda job: _Done(task.remote(job.to_dict())), first_done, tell, len(jobs)))
    finally:
        ray.shutdown()


def _as_needed(
    jobs: Sequence[Job], start: Callable[[Job], Any], first_done: Callable[[Any], Any], tell: Tell, num_workers: int
) -> Iterator[Outcome]:
    """Start jobs as what they need is done; outcomes in the order of their ends, those never started included."""
    left = list(jobs)
    running: dict[Any, Job] = {}
    good: set[str] = set()
    bad: set[str] = set()
    named = {job.name for job in jobs}
    while left or running:
        for job in [job for job in left if bad & set(job.needs)]:
            left.remove(job)
            bad.add(job.name)
            outcome = Outcome(job.name, _SKIPPED.format(next(n for n in job.needs if n in bad)), 0.0)
            tell(job, outcome)
            yield outcome
        for job in [job for job in left if all(need in good or need not in named for need in job.needs)]:
            if len(running) < num_workers:
                left.remove(job)
                tell(job, None)
                running[start(job)] = job
        if running:
            done = first_done(running)
            job = running.pop(done)
            try:
                outcome = done.result()
            except Exception as error:  # a job that could not even be started must not end the others
                outcome = Outcome(job.name, f"{type(error).__name__}: {error}", 0.0)
            (bad if outcome.error else good).add(job.name)
            tell(job, outcome)
            yield outcome


def commands(jobs: Sequence[Job], folder: str) -> Iterator[str]:
    """Shell lines for a scheduler of the user's own, in waves: the lines of a wave may run side by side."""
    wave_of: dict[str, int] = {}
    for job in jobs:
        wave_of[job.name] = 1 + max((wave_of[need] for need in job.needs if need in wave_of), default=0)
    for wave in range(1, max(wave_of.values(), default=0) + 1):
        mine = [job for job in jobs if wave_of[job.name] == wave]
        yield f"# wave {wave} of {max(wave_of.values())}: {len(mine)} job(s), any number of them at a time"
        for job in mine:
            yield f"python -m sftlab study --job {folder}/{job.name}.json"
