"""One job over several nodes of a Ray cluster: torchrun on each, started together and ended together.

    placement group     node 0 ................   node 1 .........     a bundle of cores and GPUs for each
                        carry_out -> torchrun 0 <-> torchrun 1         the first keeps the run's lock and its log

``trainer.num_nodes`` of a run sets the number; the nodes share the study's folder, as for small jobs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftlab.processes import end_process, free_port
from sftlab.study.graph import Job
from sftlab.study.job import Outcome, carry_out, last_lines
from sftlab.yaml_files import read_yaml

_LOOK_EVERY_S = 1.0  # seconds between checks of the other nodes


@dataclass(frozen=True)
class Nodes:
    """The nodes that a run needs.

    Attributes:
        count: Number of nodes.
        num_processes: Number of processes on each.
    """

    count: int
    num_processes: int


def nodes_of(job: Job) -> Nodes:
    """Return the nodes that a job's run asks for in its config.

    Raises:
        ValueError: It asks for several nodes without a number of processes for each.
    """
    trainer = read_yaml(Path(job.config_file), "config").get("trainer") or {}
    count, devices = trainer.get("num_nodes") or 1, trainer.get("devices", 1)
    if count > 1 and (type(devices) is not int or devices < 1):
        raise ValueError(f"{job.config_file}: trainer.devices: {devices!r}; over several nodes give a number, of each")
    return Nodes(count, devices if type(devices) is int else 1)


class Node:
    """A further node, as an actor there."""

    def start(self, words: Sequence[str], variables: Mapping[str, str], folder: str, log: str) -> None:
        """Start torchrun; ``words`` are its arguments."""
        inherited = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
        self._log = Path(log)
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                _torchrun(words), stdout=file, stderr=file, cwd=folder, env={**inherited, **variables},
                start_new_session=True,
            )  # fmt: skip

    def error(self) -> str:
        """Return how torchrun failed; empty if it has not."""
        return last_lines(self._log, self._process.returncode) if self._process.poll() else ""

    def end(self) -> None:
        """End what still runs."""
        if self._process.poll() is None:
            end_process(self._process)


def lead(
    content: dict[str, Any], where: str, nodes: Nodes, others: Sequence[Any], threads: Mapping[str, str]
) -> Outcome:
    """Carry out a job from its first node; ``others`` are the actors of the other nodes."""
    import ray

    os.chdir(where)
    job, stop, errors = Job.from_dict(content), threading.Event(), list[str]()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            found = ray.get([node.error.remote() for node in others])
            errors.extend(f"node {rank}: {error}" for rank, error in enumerate(found, 1) if error)
            if errors:  # the first would wait for it for a long time
                stop.set()

    @contextmanager
    def launched(words: Sequence[str], variables: Mapping[str, str]) -> Iterator[list[str]]:
        at = ["--nnodes", nodes.count, "--nproc-per-node", nodes.num_processes, "--master-port", free_port()]
        common = [*map(str, at), "--master-addr", ray.util.get_node_ip_address()]
        log = Path(job.folder).parents[1].resolve() / "logs"

        def of(rank: int) -> list[str]:
            return [*common, "--node-rank", str(rank), "-m", *words]

        started = [
            node.start.remote(of(rank), dict(variables), where, str(log / f"{job.name}.node{rank}.txt"))
            for rank, node in enumerate(others, 1)
        ]
        ray.get(started)
        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield _torchrun(of(0))
        finally:
            stop.set()
            watching.join()
            ray.get([node.end.remote() for node in others])

    outcome = carry_out(job, threads, stop, launched)
    return Outcome(outcome.job, "\n".join(errors), outcome.seconds) if outcome.error and errors else outcome


def _torchrun(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *words]
