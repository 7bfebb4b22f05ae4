"""Launched ranks on this machine: if one of them dies, the run ends with a message.

Lightning checks them every five seconds and, if one has failed, kills all with SIGKILL: without a message or a useful
exit status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from sftlab.run.folder import FOLDER_VARIABLE, LAUNCHER_VARIABLE
from sftlab.screen import complain

LOOK_EVERY_S = 0.5
GRACE_S = 10.0  # time for the first rank to notice by itself, in a collective, and to report more


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine and watches them."""

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **options: Any) -> Any:
        """Start the ranks, then call the function in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            if self.num_nodes > 1:
                complain(self._meeting())
            os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
            self._call_children_scripts()
            del os.environ[LAUNCHER_VARIABLE]  # other child processes are not ranks of this run
            threading.Thread(target=watch, args=(self.procs,), name="ranks", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **options)

    def _meeting(self) -> str:
        """Print where this node waits for the others, or which node it looks for.

        Raises:
            ValueError: This node cannot find the first one, which chose its own port.
        """
        environment, node = self.cluster_environment, self.cluster_environment.node_rank()
        if node and "MASTER_PORT" not in os.environ:
            raise ValueError(
                f"trainer.num_nodes: {self.num_nodes}: node {node} does not know where node 0 is: set MASTER_ADDR and "
                "MASTER_PORT, as node 0 says when it is started"
            )
        place = f"{environment.main_address}:{environment.main_port}"
        if node:
            return f"Node {node} of {self.num_nodes}: looks for node 0 at {place}"
        here = ""
        if environment.main_address in ("127.0.0.1", "localhost", "::1"):
            here = ". Only this machine finds it there: for others set MASTER_ADDR to its address"
        run = Path(os.environ.get(FOLDER_VARIABLE, "")).name
        where = f"MASTER_ADDR={environment.main_address} MASTER_PORT={environment.main_port}"
        return (
            f"Node 0 of {self.num_nodes}: waits at {place} for the others. On each start the same command"
            f"{f' with --run {run} and' if run else ' with'} NODE_RANK=1, 2 ... {where}{here}"
        )


def watch_ranks(trainer: Trainer) -> None:
    """Make a Trainer that launches ranks watch them this way."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = RankLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )


def watch(ranks: list[subprocess.Popen]) -> None:
    """Wait until all have ended; if one fails, end all and this process, with status 1 and a message."""
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(LOOK_EVERY_S)
    failed = [(number, rank) for number, rank in enumerate(ranks, 1) if rank.poll()]
    if not failed:
        return
    time.sleep(GRACE_S)  # a daemon: the end of the first rank ends this thread
    number, rank = failed[0]
    complain(
        f"error: process {rank.pid} of this run, its rank {number}, has ended ({_how(rank.returncode)}), and all wait "
        "for it. Saved checkpoints are kept; --ckpt_path last resumes"
    )
    for other in ranks:
        other.send_signal(signal.SIGKILL)  # SIGTERM does not end a process that hangs in a collective
    os._exit(1)


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by {signal.Signals(-status).name}: was it killed, or out of memory?"
    return f"exit status {status}"
