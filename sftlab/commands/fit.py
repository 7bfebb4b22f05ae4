"""``fit``: train the stages of a schedule."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys


def main(arguments: list[str]) -> int:
    """Train; the arguments are LightningCLI's and are read from ``sys.argv``, so that launched ranks get them too."""
    from sftlab.processes import is_follower
    from sftlab.run.folder import LAUNCHER_VARIABLE

    launcher = os.environ.pop(LAUNCHER_VARIABLE, "")
    if is_follower() and launcher:
        _end_with(int(launcher))
    from sftlab.cli import LabCLI, freeze_imports

    freeze_imports()
    try:
        LabCLI()
    except SystemExit as error:  # Lightning's own exit after Ctrl-C prints nothing
        if isinstance(error.__context__, KeyboardInterrupt) and not is_follower():
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if (ended := _ended_process(error)) is None:
            raise
        if is_follower():  # the rank that caused it, and the first rank, report it
            sys.exit(1)
        raise OSError(f"{ended} Saved checkpoints are kept; --ckpt_path last resumes") from error
    return 0


def _ended_process(error: RuntimeError) -> str | None:
    """Return which process's end made training fail, if that is the cause."""
    from sftlab.processes import is_lost_process

    text = str(error)
    if match := re.search(r"port: (\d+).*EADDRINUSE", text, re.DOTALL):
        return (
            f"port {match[1]}, over which this run's processes would find each other, is in use by another program "
            "(MASTER_PORT=N names another one)."
        )
    if match := re.search(r"DataLoader worker \(pid[^)]*\).*", text):
        return f"{' '.join(match[0].split()).rstrip('.')}: was it killed, or out of memory?"
    if is_lost_process(error):
        return f"another process of this run has ended ({text.strip().splitlines()[0][:200]})."
    return None


def _end_with(launcher: int) -> None:
    """Make a launched rank die with the first one, instead of waiting for it while holding a device."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != launcher:  # the first rank had ended before
            os.kill(os.getpid(), signal.SIGKILL)
