"""A callback for runs that are to be killed in the middle of an asynchronous save."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch.distributed.checkpoint import FileSystemWriter


class SlowWrites(Callback):
    """Threads that write shards wait from their second checkpoint on, until a file ``go`` lies in the run's folder.

    Each process leaves its id in ``rank-<n>``, and ``waiting-<n>`` while its thread waits.
    """

    changes_training = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the place of torch's writing."""
        folder, rank = Path(trainer.default_root_dir), trainer.global_rank
        (folder / f"rank-{rank}").write_text(str(os.getpid()))
        write, calls = FileSystemWriter.write_data, []

        def slowly(writer: Any, *arguments: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                calls.append(1)
                until = time.monotonic() + 120
                (folder / f"waiting-{rank}").write_text("") if len(calls) > 1 else None
                while len(calls) > 1 and not (folder / "go").exists() and time.monotonic() < until:
                    time.sleep(0.01)
            return write(writer, *arguments)

        FileSystemWriter.write_data = slowly  # type: ignore[method-assign]
