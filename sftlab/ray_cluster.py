"""Joins a Ray cluster. Ray is only needed if a user asks for it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

_REACHED_WITHIN_S = 10.0  # Ray itself tries for minutes


def join(address: str, option: str) -> Any:
    """Join a cluster; return the module ``ray``. SIGTERM keeps its meaning.

    Args:
        address: ``auto``, ``host:6379`` or ``ray://host:10001``; empty stands for the environment's ``RAY_ADDRESS``,
            and where that is empty too one is started on this machine.
        option: Where the user asked for it, for messages.

    Raises:
        ValueError: Ray is not installed, or the cluster does not answer.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ImportError:
        raise ValueError(f"{option} needs the extra: pip install 'sftlab[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        address = address or os.environ.get("RAY_ADDRESS", "")
        _reach(address)
        ray.init(address=address or "local", **options)  # None would join whatever cluster this machine started last
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{option}: no cluster at {address!r}: {error}") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)
    return ray


def _reach(address: str) -> None:
    """Check that something listens there.

    Raises:
        OSError: Nothing listens.
        ValueError: The port is not a number.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and not port.isdecimal():
        raise ValueError(f"{port!r} is not the number of a port")  # Ray would try it for minutes
    if host:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED_WITHIN_S).close()
