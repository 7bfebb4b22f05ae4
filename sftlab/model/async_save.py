"""Asynchronous saving: a sharded checkpoint is written while training continues.

    begin     every process copies its part and continues training
    write     a thread on each writes its shards into a partial folder; process 0 renames it when all are there
    finish    before the next save, and at the run's end: every process waits, and all of them learn of an error

It becomes a checkpoint only when renamed; the one it replaces is removed after that, so one is always complete.
"""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed import checkpoint as dcp

from sftlab.files import discard, publish_folder, removed_on_error
from sftlab.model.contents import META

_PATIENCE = timedelta(days=1)  # a slow disk must not look like a dead process


class AsyncSave:
    """One process's part in writing a sharded checkpoint while training goes on.

    Args:
        is_zero: Whether this is process 0.
    """

    def __init__(self, is_zero: bool) -> None:
        self._is_zero = is_zero
        self._group: Any = None  # the thread's own group: training uses the other one
        self._written: Future[None] | None = None
        self._path = Path()
        self._replaced: list[Path] = []  # to be removed when the checkpoint is complete
        self._is_whole = False
        self._lock = threading.Lock()

    def begin(self, state: dict[str, Any], rest: dict[str, Any], partial: Path, path: Path) -> None:
        """Copy the state and write it in the background. Call it on every process, after ``finish``.

        Args:
            state: Weights and optimizer states.
            rest: Everything else in the checkpoint.
            partial: A folder beside ``path``.
            path: The name of the complete checkpoint.
        """
        assert self._written is None
        if self._group is None:
            self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        beside = io.BytesIO()
        if self._is_zero:
            torch.save(rest, beside)  # copied now, because training changes it
        self._path, self._replaced, self._is_whole = path, [], False
        partial.mkdir(parents=True, exist_ok=True)
        shards = cast("Future[Any]", dcp.async_save(state, checkpoint_id=partial, process_group=self._group))
        pool = ThreadPoolExecutor(1)
        self._written = pool.submit(self._publish, shards, beside.getvalue(), partial)
        pool.shutdown(wait=False)

    def _publish(self, shards: Future[Any], beside: bytes, partial: Path) -> None:
        with removed_on_error(partial, self._path):
            shards.result()
            if not self._is_zero:
                return
            (partial / META).write_bytes(beside)
            publish_folder(partial, self._path)
        with self._lock:
            self._is_whole = True
            for path in self._replaced:
                discard(path)

    def remove(self, path: Path) -> bool:
        """Remove another checkpoint once this one is complete, and not if it fails.

        Returns:
            Whether a checkpoint is being written; else the caller removes the other one.
        """
        with self._lock:
            if self._written is None or self._is_whole:
                return False
            self._replaced.append(path)
            return True

    def finish(self) -> None:
        """Wait until the checkpoint is complete. Call it on every process.

        Raises:
            OSError: A process's disk is full or not writable.
            ValueError: The checkpoint could not be written for another reason.
        """
        if self._written is None:
            return
        error = self._written.exception()
        self._written = None
        told = None if error is None else (getattr(error, "errno", None), str(getattr(error, "strerror", 0) or error))
        all_told: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(all_told, told, group=self._group)
        for number, words in (told for told in all_told if told is not None):
            if number is not None:
                raise OSError(number, words, str(self._path))
            lines = words.strip().splitlines() or ["no reason given"]
            raise ValueError(
                f"{self._path} could not be written during training: {lines[-1].strip()[:300]}. The checkpoint "
                "before it is complete; resume from it with --ckpt_path last"
            )
