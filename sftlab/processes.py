"""Processes of others that we start: a port for them to meet at, and how they are ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress

_GRACE_S = 30.0  # a process that was asked to end and does not is killed


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
