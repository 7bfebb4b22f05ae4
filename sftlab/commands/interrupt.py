"""SIGTERM while jobs run: it interrupts like Ctrl-C, and the exit status tells which of the two it was."""

from __future__ import annotations

import signal
from collections.abc import Callable


def heed_sigterm() -> Callable[[], int]:
    """Make SIGTERM raise KeyboardInterrupt too.

    Returns:
        A function that returns the exit status after a KeyboardInterrupt: 143 if it was SIGTERM, else 130.
    """
    asked = [signal.SIGINT]

    def end(signum: int, _: object) -> None:
        asked.append(signal.Signals(signum))
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    return lambda: 128 + asked[-1]
