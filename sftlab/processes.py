"""Processes: cores for them, which of a run's this one is, a port for those we start to meet at, how they end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

_GRACE_S = 30.0  # a process that was asked to end and does not is killed
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "400000 100000" in a container that may use four cores, "max 100000" else


def is_follower() -> bool:
    """Whether this process is a rank other than the first, however it was launched."""
    if rank := os.environ.get("RANK", os.environ.get("SLURM_PROCID")):
        return rank != "0"
    return any(os.environ.get(name, "0") != "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, no more than its container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, _QUOTA.read_text().split())
        return max(1, min(bound, quota // period))
    return bound


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the run has gone: of torch's communication, by class or words."""
    names = [cls.__name__ for cls in type(error).__mro__]
    words = r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket"
    return "DistError" in names or bool(isinstance(error, RuntimeError) and re.search(words, str(error)))


def free_port(host: str = "") -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def end_process(process: subprocess.Popen) -> None:
    """Ask a process that leads a session to end, kill it where it does not, and then what it has left behind."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
