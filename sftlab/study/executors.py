"""Executors carry out the jobs of a study: on this machine, on a Ray cluster, or by a user's class.

All of them start a job once those that it needs are done, continue with the rest when one fails, and report the jobs
that cannot start. An executor of your own defines how a job is started and how its end is detected:

    class Slurm(Executor):                       # study --executor my_module.Slurm --executor.partition gpu
        def __init__(self, partition: str) -> None: ...
        def start(self, job): ...                # submits  python -m sftlab study --job FILE
        def first_done(self, handles): ...
        def outcome(self, handle): ...
"""

from __future__ import annotations

import os
import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sftlab.ray_cluster import join
from sftlab.study.graph import Job
from sftlab.study.job import Outcome, carry_out
from sftlab.study.nodes import Node, lead, nodes_of

Tell = Callable[[Job, Outcome | None], None]  # None when the job starts
_SKIPPED = "not started: {} failed"


class Executor(ABC):
    """Starts jobs and reports their outcomes. Subclass it for a scheduler of your own.

    Attributes:
        num_slots: Number of jobs that may run at once; None for any number.
    """

    num_slots: int | None = None

    @abstractmethod
    def start(self, job: Job) -> Hashable:
        """Start a job; return a handle for it."""

    @abstractmethod
    def first_done(self, handles: Sequence[Hashable]) -> Hashable:
        """Wait until one of the running jobs has ended; return its handle."""

    @abstractmethod
    def outcome(self, handle: Any) -> Outcome:
        """Return the outcome of a job that has ended."""

    def open(self) -> None:  # noqa: B027 - most have nothing to get ready
        """Prepare to start jobs.

        Raises:
            ValueError: The executor cannot be used.
        """

    def close(self) -> None:  # noqa: B027
        """End the jobs that still run; also called after an interrupt."""

    def run(self, jobs: Sequence[Job], tell: Tell) -> list[Outcome]:
        """Carry out jobs, each after those that it needs.

        Args:
            jobs: Jobs in an order in which each comes after those it needs.
            tell: Called when a job starts and ends.
        """
        self.open()
        try:
            return list(self._as_needed(jobs, tell))
        finally:
            self.close()

    def _as_needed(self, jobs: Sequence[Job], tell: Tell) -> Iterator[Outcome]:
        """Yield outcomes as jobs end, including those never started."""
        left = list(jobs)
        running: dict[Hashable, Job] = {}
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
                if self.num_slots is None or len(running) < self.num_slots:
                    left.remove(job)
                    tell(job, None)
                    running[self.start(job)] = job
            if running:
                handle = self.first_done(list(running))
                job = running.pop(handle)
                try:
                    outcome = self.outcome(handle)
                except Exception as error:  # a job that could not be started must not end the others
                    outcome = Outcome(job.name, f"{type(error).__name__}: {error}", 0.0)
                (bad if outcome.error else good).add(job.name)
                tell(job, outcome)
                yield outcome


class Local(Executor):
    """Processes of this machine, with its threads (and GPUs) divided.

    An interrupt ends the running jobs; what their last checkpoints hold is kept.

    Args:
        num_workers: Number of jobs that run at once.
    """

    def __init__(self, num_workers: int = 1) -> None:
        self.num_slots: int = num_workers
        self._free, self._stop, self._lock = list(range(num_workers)), threading.Event(), threading.Lock()

    def open(self) -> None:
        """Start threads that wait for the processes; undo an earlier ``close``."""
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(self.num_slots)

    def start(self, job: Job) -> Future:
        """Start a process for the job."""
        return self._pool.submit(self._work, job)

    def first_done(self, handles: Sequence[Hashable]) -> Hashable:
        """Wait for the first process that ends."""
        futures = [handle for handle in handles if isinstance(handle, Future)]
        return next(iter(wait(futures, return_when=FIRST_COMPLETED).done))

    def outcome(self, handle: Future) -> Outcome:
        """Return the outcome of the process."""
        return handle.result()

    def close(self) -> None:
        """End the processes."""
        self._stop.set()
        self._pool.shutdown()

    def _work(self, job: Job) -> Outcome:
        with self._lock:
            slot = self._free.pop(0)
        try:
            return carry_out(job, self._share_of_machine(slot), self._stop)
        finally:
            with self._lock:
                self._free.append(slot)

    def _share_of_machine(self, slot: int) -> dict[str, str]:
        if self.num_slots == 1:
            return {}
        import torch

        threads = max(1, (os.cpu_count() or 1) // self.num_slots)
        share = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
        if torch.cuda.device_count() >= self.num_slots:
            mine = range(slot, torch.cuda.device_count(), self.num_slots)
            share["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
        return share


class Ray(Executor):
    """Tasks of a Ray cluster whose nodes share this folder; a run with ``trainer.num_nodes`` above 1 takes as many.

    Args:
        address: Address of the cluster (``auto``, ``ray://host:10001``); empty starts one on this machine.
        num_cpus: Cores that one job takes, on each of its nodes.
        num_gpus: GPUs that one job takes, on each of its nodes.
    """

    def __init__(self, address: str = "", num_cpus: float = 1.0, num_gpus: float = 0.0) -> None:
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def open(self) -> None:
        """Join the cluster.

        Raises:
            ValueError: Ray is not installed, or the cluster does not answer.
        """
        ray = join(self.address, "--ray_address" if self.address else "--executor ray")
        where, threads = os.getcwd(), str(max(1, int(self.num_cpus)))
        share = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}

        def in_folder(content: dict[str, Any]) -> Outcome:
            os.chdir(where)
            return carry_out(Job.from_dict(content), share)

        self._ray: Any = ray  # the overloads of ray.remote do not know computed options
        self._where, self._share = where, share
        self._groups: dict[Hashable, Any] = {}  # placement groups of jobs over several nodes
        self._takes = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        self._task = self._ray.remote(**self._takes, max_retries=0)(in_folder)

    def start(self, job: Job) -> Hashable:
        """Start a task for the job, with an actor on each further node."""
        nodes = nodes_of(job)
        if nodes.count == 1:
            return self._task.remote(job.to_dict())
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        takes = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        bundle = {name: number for name, number in takes.items() if number}
        group = placement_group([bundle] * nodes.count, strategy="SPREAD")
        places = [PlacementGroupSchedulingStrategy(group, number) for number in range(nodes.count)]
        node, first = self._ray.remote(**self._takes)(Node), self._ray.remote(**self._takes, max_retries=0)(lead)
        others = [node.options(scheduling_strategy=place).remote() for place in places[1:]]
        task = first.options(scheduling_strategy=places[0])
        handle: Hashable = task.remote(job.to_dict(), self._where, nodes, others, self._share)
        self._groups[handle] = group
        return handle

    def first_done(self, handles: Sequence[Hashable]) -> Hashable:
        """Wait for the first task that ends."""
        return self._ray.wait(list(handles), num_returns=1)[0][0]

    def outcome(self, handle: Any) -> Outcome:
        """Return the outcome of the task."""
        try:
            return self._ray.get(handle)
        finally:
            if (group := self._groups.pop(handle, None)) is not None:
                self._ray.util.remove_placement_group(group)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def commands(jobs: Sequence[Job], folder: str) -> Iterator[str]:
    """Return shell lines for the user's own scheduler, in waves: the lines of a wave may run side by side."""
    wave_of: dict[str, int] = {}
    for job in jobs:
        wave_of[job.name] = 1 + max((wave_of[need] for need in job.needs if need in wave_of), default=0)
    for wave in range(1, max(wave_of.values(), default=0) + 1):
        mine = [job for job in jobs if wave_of[job.name] == wave]
        yield f"# wave {wave} of {max(wave_of.values())}: {len(mine)} job(s), any number of them at a time"
        for job in mine:
            yield shlex.join(["python", "-m", "sftlab", "study", "--job", f"{folder}/{job.name}.json"])
