"""Processes: available cores, this process's role in a run, a free port to meet at, ending processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

_GRACE_S = 30.0  # seconds before a process that was asked to end is killed
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "400000 100000": four cores; "max 100000": no limit


def is_follower() -> bool:
    """Return whether this process is a rank other than the first, however it was launched."""
    if rank := os.environ.get("RANK", os.environ.get("SLURM_PROCID")):
        return rank != "0"
    return any(os.environ.get(name, "0") != "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def num_cores() -> int:
    """Return the cores that this process may use: those it is bound to, limited by its container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, _QUOTA.read_text().split())
        return max(1, min(bound, quota // period))
    return bound


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process of the run has ended, by torch's error class or message."""
    names = [cls.__name__ for cls in type(error).__mro__]
    words = r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket"
    return "DistError" in names or bool(isinstance(error, RuntimeError) and re.search(words, str(error)))


def free_port(host: str = "") -> int:
    """Return a port of this machine on which nothing listens now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def end_process(process: subprocess.Popen) -> None:
    """Ask a process that leads a session to end, kill it if it does not, and then its remaining children."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
