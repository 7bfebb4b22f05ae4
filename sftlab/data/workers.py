"""Workers: conversations are fitted by threads, or by processes once these are measured to be faster.

    this process: read, ask --stdin--> worker: render, tokenise, fit --stdout--> this process: number, write

Threads are enough if most of the time goes to the tokenizer, which releases Python's lock. A chat template in Jinja
holds the lock, so that threads use little more than one core.

A worker is a command with two pipes. So no process with threads is forked, no user's script is run again, and a worker
ends when its pipe closes, however its parent ended. It imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from sftlab.processes import num_cores

if TYPE_CHECKING:
    from sftlab.data.conversation import Conversation
    from sftlab.data.fitter import Fitted, Fitter

_THREADS = 3  # more than cores: while one thread waits for Python's lock, the others keep the cores busy
_AHEAD = 2  # chunks waiting for a thread
WINDOW_S = 3.0  # seconds before the first measurement and between measurements: longer than workers take to start
_GAIN = 1.25  # least speedup for which processes are started
ALONE = {  # in the environment of a process that is one of many
    "TOKENIZERS_PARALLELISM": "false",
    **dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


class Asked(Protocol):
    """Fits conversations elsewhere; used by one thread at a time."""

    def ask(self, asked: bytes) -> list[Fitted] | None:
        """Return the pickled results of some conversations; None if their classes are not known there."""

    def kill(self) -> None:
        """Stop it at once."""


class Fitting:
    """Fits conversations on all cores; the result is the same whoever fits them.

    Args:
        fit: Fits some conversations.
        elsewhere: Creates workers on other machines from the pickled fitter; None uses this machine.
    """

    def __init__(self, fit: Fitter, elsewhere: Callable[[bytes], Sequence[Asked]] | None = None) -> None:
        self._fit, self._workers = fit, list[Asked]()
        self._idle = SimpleQueue[Asked]()
        self._pools = [ThreadPoolExecutor(_THREADS)]
        self._can_leave = True
        self._last: tuple[Sequence[Conversation], list[Fitted]] | None = None
        self._look_again()
        if elsewhere is not None and (setup := self._pickled()):
            self._take(elsewhere(setup))

    def __enter__(self) -> Fitting:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    @property
    def most_waiting(self) -> int:
        """Number of chunks in flight: enough that every worker always finds one."""
        return max(_THREADS, len(self._workers)) + _AHEAD

    def submit(self, talks: Sequence[Conversation]) -> Future[list[Fitted]]:
        """Fit some conversations, as ``Fitter.fitted`` does."""
        if self._can_leave and not self._workers and time.perf_counter() > self._due:
            self._look()
        return self._pools[-1].submit(self._asked if self._workers else self._here, talks)

    def _here(self, talks: Sequence[Conversation]) -> list[Fitted]:
        start = time.thread_time()
        found = self._fit.fitted(talks)
        self._spent_s.append(time.thread_time() - start)
        self._last = talks, found
        return found

    def _asked(self, talks: Sequence[Conversation]) -> list[Fitted]:
        try:
            asked = pickle.dumps(talks)
        except Exception:  # a user's reader may return texts of a class that no other process has
            return self._fit.fitted(talks)
        worker = self._idle.get()
        try:
            found = worker.ask(asked)
        finally:
            self._idle.put(worker)
        return self._fit.fitted(talks) if found is None else found

    def _pickled(self) -> bytes:
        """Return the pickled fitter for another process; None if no other process could load it."""
        try:
            return pickle.dumps(self._fit)
        except Exception:  # a text or a template of a class that no other process has
            self._can_leave = False
            return b""

    def _look_again(self) -> None:
        self._spent_s: list[float] = []  # processor time of the threads, by chunk
        self._since_s = time.thread_time(), time.process_time()
        self._due = time.perf_counter() + WINDOW_S

    def _look(self) -> None:
        """Start workers if the times measured since the last look show that they pay."""
        if not self._spent_s or self._last is None:
            return
        own_s, all_s = (now - then for now, then in zip(_processor_s(), self._since_s, strict=True))
        python_s, chunks = sum(self._spent_s), len(self._spent_s)
        try:
            start = time.thread_time()
            pickle.dumps(self._last[0]), pickle.loads(pickle.dumps(self._last[1]))
            carried_s = chunks * (time.thread_time() - start)
            count = num_workers(own_s, python_s, max(0.0, all_s - own_s - python_s), carried_s, _cores())
        except Exception:  # a text of a class that no other process has
            self._can_leave = False
            return
        self._look_again()
        if count and (setup := self._pickled()):
            self._start(count, setup)

    def _start(self, count: int, setup: bytes) -> None:
        started = list[_Worker]()
        try:
            for _ in range(count):
                started.append(_Worker(setup))
        except OSError:  # as many processes as allowed: these are the workers
            self._can_leave = False
        self._take(started)

    def _take(self, workers: Sequence[Asked]) -> None:
        """Use these workers from now on."""
        self._workers.extend(workers)
        for worker in self._workers:
            self._idle.put(worker)
        if self._workers:
            self._pools[-1].shutdown(wait=False)  # a worker finishes its current chunk
            self._pools.append(ThreadPoolExecutor(len(self._workers)))


def _cores() -> int:
    """Return the cores to use: ``RAYON_NUM_THREADS`` bounds the tokenizer's threads, and so what replaces them."""
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    return min(num_cores(), int(asked)) if asked.isdecimal() and int(asked) else num_cores()


def _processor_s() -> tuple[float, float]:
    return time.thread_time(), time.process_time()


def num_workers(own_s: float, python_s: float, tokenizer_s: float, carried_s: float, cores: int) -> int:
    """Return how many processes should fit conversations; 0 if threads are about as fast.

    Args:
        own_s: Processor time of reading and writing, which stays in this process.
        python_s: Processor time of fitting that holds Python's lock.
        tokenizer_s: Processor time of fitting that does not.
        carried_s: Processor time for sending conversations and receiving results.
        cores: Number of cores.
    """
    threads_s = max(own_s + python_s, (own_s + python_s + tokenizer_s) / cores)
    fitting_s = python_s + tokenizer_s + carried_s
    count = min(cores, math.ceil(fitting_s / max(own_s + carried_s, 1e-9)))  # more processes would wait for this one
    processes_s = max(own_s + carried_s, (own_s + carried_s + fitting_s) / cores, fitting_s / max(count, 1))
    return count if cores > 1 and processes_s * _GAIN < threads_s else 0


class _Worker:
    """A process that fits; used by one thread at a time.

    Args:
        setup: The pickled fitter.
    """

    def __init__(self, setup: bytes) -> None:
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        self._waiting, self._has_answered = [setup], False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its errors are reported here, once
            env={**os.environ, **ALONE, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C goes to the parent
        )

    def ask(self, asked: bytes) -> list[Fitted] | None:
        """Return the pickled results; None if the process does not know their classes or the fitter's.

        Raises:
            ValueError: The fitter raised it, or the process has died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            for message in (*self._waiting, asked):
                pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            self._waiting = []
            found, error = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._tell_death()
            return None
        self._has_answered = True
        if error is not None:
            raise error
        return found

    def _tell_death(self) -> None:
        """Report why it died, unless this Python cannot be started as a subprocess at all.

        Raises:
            ValueError: It was killed, or died after it had answered.
        """
        status = self._process.wait()
        if status > 0 and not self._has_answered:
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        memory = ", as happens when memory is used up" if status == -signal.SIGKILL else ""
        raise ValueError(
            f"preparing data: a worker process {how}{memory}; what was prepared before stays in the cache. "
            "RAYON_NUM_THREADS=2 prepares with two of them, RAYON_NUM_THREADS=1 with none"
        )

    def kill(self) -> None:
        """Kill it: it holds no state."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # nobody waits for what was not sent
                continue


def _work() -> None:
    """Answer until the pipe closes: first comes the fitter, then chunks of conversations."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # end when the pipe does
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not an answer
    try:
        fit = loaded(pickle.load(sys.stdin.buffer))
        while True:
            talks = loaded(pickle.load(sys.stdin.buffer))
            answers.write(answer(fit, talks))
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)


def loaded(message: bytes) -> Any:
    """Unpickle a message; None if its classes cannot be imported in this process."""
    try:
        return pickle.loads(message)
    except Exception:
        return None


def answer(fit: Fitter | None, talks: Sequence[Conversation] | None) -> bytes:
    """Return the pickled results or the pickled error of some conversations; (None, None) if something did not load."""
    if fit is None or talks is None:
        return pickle.dumps((None, None))
    try:
        return pickle.dumps((fit.fitted(talks), None))
    except Exception as error:
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        try:
            pickle.loads(answer := pickle.dumps((None, error)))
        except Exception:  # errors of some libraries cannot be pickled
            answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
        return answer


if __name__ == "__main__":
    _work()
