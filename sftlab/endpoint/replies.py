"""Requests to a language model, its replies, and a file that keeps them: what was answered is never paid for again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple


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
    """

    messages: tuple[tuple[str, str], ...]
    temperature: float | None = 0.0
    max_tokens: int = 1024
    seed: int | None = None
    n: int = 1
    sample: int = 0

    def key(self, model: str) -> str:
        """Name of the reply in the cache."""
        text = json.dumps([model, asdict(self)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Reply(NamedTuple):
    """What the model said, ``n`` times, and for each text whether it ended before ``max_tokens``."""

    texts: tuple[str, ...]
    complete: tuple[bool, ...]


class ReplyCache:
    """Replies by key in a file to which lines are only added; a line that a kill cut short is passed over.

    Args:
        path: The file; None keeps replies in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, threading.Lock()
        self._replies: dict[str, Reply] = {}
        if path is None or not path.is_file():
            return
        with path.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    self._replies[row["key"]] = Reply(tuple(row["texts"]), tuple(row["complete"]))
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> Reply | None:
        """The reply of that key, if there is one."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply, about: dict[str, Any]) -> None:
        """Keep a reply; when this returns it is on the disk.

        Args:
            key: See ``Chat.key``.
            reply: What was said.
            about: Kept beside it, for people.
        """
        line = json.dumps({"key": key, "texts": reply.texts, "complete": reply.complete, **about}).encode() + b"\n"
        with self._lock:
            self._replies[key] = reply
            if self.path is None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a line is one write: processes may share the file.
            with self.path.open("ab+", buffering=0) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                    line = b"\n" + line if torn else line
                file.write(line)
                os.fsync(file.fileno())
