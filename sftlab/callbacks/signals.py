"""Signals: a run that is asked to end finishes its step, saves, says how to resume, exits with the signal's status.

SIGTERM, Ctrl-C        recorded; at the end of the current step all ranks agree on it, save and stop (143, 130)
Ctrl-C again           stops at once
SLURM's requeue        recorded too: inside a step, Lightning would save weights and counts that do not belong
                       together, and ranks would save at different steps
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from torch import distributed

from sftlab.screen import complain

GRACE_S = 20.0  # time for a rank to end by itself once everything is saved


class Stopped(SystemExit):
    """Ends a run that was asked to end; the exit status tells which signal."""


class Signals:
    """The signals received during one call of ``fit``.

    Args:
        trainer: The Trainer, after it has installed its own handlers.
        folder: The run's folder.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self._folder = trainer, folder
        self.saved: Path | None = None  # the checkpoint of the current step; if it exists, the run may end at any time
        self._asked, self._owner = 0, os.getpid()
        self._requeue: Callable[[], Any] | None = None
        self._is_requeue_asked = False
        self._group = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        if threading.current_thread() is threading.main_thread():
            self._install()

    def _install(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup and background jobs expect
                signal.signal(signum, self._note)
        environment = self.trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signum = environment.requeue_signal or signal.SIGUSR1
            theirs = signal.getsignal(signum)
            if callable(theirs):
                self._requeue = lambda: theirs(signum, None)
                signal.signal(signum, self._note_requeue)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker
            os._exit(128 + signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next signal ends the process at once
        is_first, self._asked = not self._asked, self._asked or signum
        if self.saved is not None:
            self._stop(self._asked)
        if is_first and self.trainer.is_global_zero:
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            complain(f"{signal.Signals(signum).name}: stopping at the end of this step{again}")

    def _note_requeue(self, signum: int, _: FrameType | None) -> None:
        self._is_requeue_asked = True

    def look(self, save: Callable[[], Path]) -> None:
        """At the end of a step, on every rank, act on the signals that any rank received.

        Args:
            save: Writes the checkpoint of this step.

        Raises:
            Stopped: They were asked to end.
        """
        asked, is_requeue = self._agreed()
        if is_requeue and self._requeue is not None:
            self._is_requeue_asked = False
            self._requeue()
        if asked:
            self.saved = self.saved or save()
            self._stop(asked)

    def _agreed(self) -> tuple[int, bool]:
        if self._group is None:
            return self._asked, self._is_requeue_asked
        asked_2 = torch.tensor([self._asked, int(self._is_requeue_asked)])
        distributed.all_reduce(asked_2, distributed.ReduceOp.MAX, group=self._group)
        return int(asked_2[0]), bool(asked_2[1])

    def _stop(self, signum: int) -> None:
        trainer = self.trainer
        if trainer.is_global_zero:
            complain(
                f"Interrupted by {signal.Signals(signum).name}: stopped after step {trainer.global_step:,}, saved "
                f"{self.saved}. Go on with the same command and --run {self._folder.name} --ckpt_path last"
            )
        # Lightning kills all processes as soon as one that it launched ends with a status other than 0.
        is_launched = not trainer.is_global_zero and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ
        status = 0 if is_launched else 128 + signum
        if trainer.world_size > 1:
            threading.Thread(target=self._end_anyway, args=(status,), daemon=True).start()
        raise Stopped(status)

    def _end_anyway(self, status: int) -> None:
        """End this process if its regular exit would wait for ranks that wait for it: all joint work is saved."""
        while self.saved is None or not self.saved.exists():  # it may be written in the background
            time.sleep(GRACE_S / 10)
        time.sleep(GRACE_S)
        os._exit(status)
