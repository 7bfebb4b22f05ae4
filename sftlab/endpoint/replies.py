"""Requests to a language model, its replies, and a file that keeps them, so that no request is paid for twice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.files import disk_error
from sftlab.screen import complain


@dataclass(frozen=True)
class Chat:
    """One request; equal chats to the same model share one reply.

    Attributes:
        messages: (role, text) pairs.
        temperature: None leaves it to the server (some models take no other value than their own).
        max_tokens: Tokens of a reply at most.
        seed: Sent when given.
        n: Replies wanted.
        sample: Never sent. The same request with another number is asked, and paid for, anew.
        is_neutral: Whether the server is told to leave its own defaults aside, such as a model's generation_config.
    """

    messages: tuple[tuple[str, str], ...]
    temperature: float | None = 0.0
    max_tokens: int = 1024
    seed: int | None = None
    n: int = 1
    sample: int = 0
    is_neutral: bool = False

    def key(self, *model: str) -> str:
        """Return the reply's name in the cache; ``model`` identifies what answers, such as its name and server."""
        text = json.dumps([*model, asdict(self)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Reply(NamedTuple):
    """The model's reply, ``n`` texts.

    Attributes:
        texts: Empty where there is none.
        complete: For each text whether it ended before ``max_tokens``.
        missing: For each text why there is none; empty where there is one.
    """

    texts: tuple[str, ...]
    complete: tuple[bool, ...]
    missing: tuple[str, ...] = ()

    @property
    def why_missing(self) -> str:
        """Return why a text is missing; empty if none is."""
        return next(filter(None, self.missing), "")


class ReplyCache:
    """Replies by key in a file to which lines are only appended.

    A line that is damaged (cut short by a kill, or worse) is told, moved to ``<name>.damaged`` and asked for again.
    Replies without text are not kept.

    Args:
        path: The file, read when the first reply is looked for; None keeps replies in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock, self._is_read = path, threading.Lock(), False
        self._replies: dict[str, Reply] = {}

    def read(self) -> None:
        """Read the file if that has not been done.

        Raises:
            ValueError: It is not a file of replies; it is left unchanged.
        """
        with self._lock:
            if not self._is_read and self.path is not None and self.path.exists():
                self._read(self.path)
            self._is_read = True

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: not a file; name a file of replies, or one that is not there yet")
        damaged: list[tuple[int, bytes]] = []
        with path.open("rb") as lines:
            place = 0
            for line in lines:
                if line.strip() and not self._take(line):
                    damaged.append((place, line))
                place += len(line)
        if not damaged:
            return
        content = b"".join(line for _, line in damaged)
        if not self._replies and content.strip(b"\0 \r\n") and b'"texts"' not in content and b"\n" in content:
            raise ValueError(f"{path}: not a file of replies; it is left as it is. Name another, or delete it")
        if not damaged[-1][1].endswith(b"\n"):
            damaged.pop()  # truncated by a kill, or another process is still writing it
        if damaged:
            _mend(path, damaged)

    def _take(self, line: bytes) -> bool:
        """Read one line; return whether it holds a reply."""
        try:
            row = json.loads(line)
            texts, complete = tuple(row["texts"]), tuple(row["complete"])
            whole = all(isinstance(text, str) and text.strip() for text in texts) and len(texts) == len(complete) > 0
            if whole:  # earlier versions kept empty replies too: these are requested again
                self._replies[row["key"]] = Reply(texts, complete)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return True

    def get(self, key: str) -> Reply | None:
        """Return the reply of this key, if there is one."""
        self.read()
        return self._replies.get(key)

    def add(self, key: str, reply: Reply, about: dict[str, Any]) -> None:
        """Store a reply that has texts; when this returns, it is on disk.

        Args:
            key: See ``Chat.key``.
            reply: The reply.
            about: Information for readers, stored beside it.

        Raises:
            OSError: The disk is full or not writable.
        """
        if reply.why_missing:
            return
        line = json.dumps({"key": key, "texts": reply.texts, "complete": reply.complete, **about}).encode() + b"\n"
        with self._lock:
            self._replies[key] = reply
            if self.path is None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _append(self.path, line)
            except OSError as error:
                raise (disk_error(error, self.path) or error) from None


def _append(path: Path, line: bytes) -> None:
    """Append a line in one unbuffered write, as processes may share the file."""
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            line = b"\n" + line if torn else line
        if file.write(line) < len(line):  # the disk filled up within it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def _mend(path: Path, damaged: list[tuple[int, bytes]]) -> None:
    """Blank damaged lines in place, so that other processes may go on appending; keep them beside the file."""
    beside = path.with_name(f"{path.name}.damaged")
    with beside.open("ab") as kept:
        kept.writelines(line for _, line in damaged)
        os.fsync(kept.fileno())
    with path.open("r+b") as file:
        for place, line in damaged:
            file.seek(place)
            file.write(b" " * (len(line) - 1))
    lines = f"{len(damaged)} line{'s' if len(damaged) > 1 else ''}"
    complain(f"{path}: {lines} damaged, moved to {beside.name}; their requests are sent again")
