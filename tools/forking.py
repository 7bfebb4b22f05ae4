"""``python -m sftlab ...`` without seconds of imports, for tools that start and kill hundreds of them.

    tool (has imported what commands need)
      |-- fork --> command, in a session of its own
                     |-- fork --> spare, before the command does anything: clean, and dead when the command is
                                    |-- fork --> what the command starts: ranks, trainings of a study

A command's own ``python -m sftlab`` are forked off its spare, so that they begin as clean as the command. All are
processes of their own, with folders, environments, streams, signals and exit statuses as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama", "sftlab.cli", "sftlab.commands.fit", "sftlab.commands.study",
    "sftlab.commands.evaluate", "sftlab.commands.plan", "sftlab.model.export", "sftlab.report.write",
)  # fmt: skip
_SPARE = "sftlab-spare"  # its name among processes
_HIGH = 200  # descriptors from here on are free


class Forked:
    """A command in a process and a session of its own, as ``subprocess.Popen`` would have it.

    Args:
        folder: Where it runs; its screen goes to ``out.txt`` and ``err.txt`` there.
        arguments: The command and its options.
        room: No file grows larger than so many bytes.
    """

    def __init__(self, folder: Path, arguments: list[str], room: int | None = None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            end_as(lambda: _command(folder, arguments, room))

    def wait(self, seconds: float) -> bool:
        """Whether it ended within the time."""
        end = time.monotonic() + seconds
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(0.01)
        return True

    def kill_all(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(60)

    def children(self) -> list[int]:
        """Processes that it has started."""
        found = []
        for child in _children(self.pid):
            with contextlib.suppress(OSError):
                is_spare = Path(f"/proc/{child}/comm").read_text().strip() == _SPARE
                found += _children(child) if is_spare else [child]
        return found


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sorted(int(word) for task in tasks for word in (task / "children").read_text().split())
    return []


def end_as(main: Callable[[], Any]) -> NoReturn:
    """End this process as one that has run nothing but ``main``."""
    status: Any = 1
    try:
        status = main()
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _command(folder: Path, arguments: list[str], room: int | None) -> Any:
    os.setsid()
    os.chdir(folder)
    for number, name, how in ((1, "out.txt", os.O_APPEND), (2, "err.txt", os.O_TRUNC)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | how), number)
    for name in [name for name in os.environ if name.startswith(("SFTLAB_", "PL_", "SLURM_"))]:
        del os.environ[name]
    os.environ.update(PYTHONPATH=str(ROOT), SFTLAB_CACHE=str(folder / "cache"))
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    keep_spare()
    return _sftlab(arguments)


def _sftlab(arguments: list[str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(ROOT / "sftlab" / "__main__.py"), *arguments]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("sftlab.__main__")  # how ranks are launched
    import_module("sftlab.__main__").console_script()
    raise AssertionError


def keep_spare() -> None:
    """Fork the spare, and let ``subprocess`` start sftlab by it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner = os.getpid()
    if not os.fork():
        ours.close()
        _serve(theirs, owner)
    theirs.close()
    lock, popen = threading.Lock(), subprocess.Popen

    def ask(files: list[int], **question: Any) -> Any:
        with lock:
            socket.send_fds(ours, [json.dumps(question).encode()], files)
            return json.loads(ours.recv(1000))

    class OfSpare(popen):  # type: ignore[misc, valid-type]
        """Popen of what runs sftlab; of all else the usual one."""

        def __init__(self, args: Any, *more: Any, **options: Any) -> None:
            self.is_ours = isinstance(args, list) and args[1:2] == ["-m"] and args[2].startswith("sftlab")
            if not self.is_ours:
                super().__init__(args, *more, **options)
                return
            self.args, self.returncode, passed = args, None, list(options.get("pass_fds", ()))
            self.stdin = self.stdout = self.stderr = None
            self._child_created = True
            out, err = (options.get(name) for name in ("stdout", "stderr"))
            streams = [out.fileno() if out else 1, err.fileno() if err else 2]
            self.pid = ask([*streams, *passed], arguments=args[3:], environment=dict(options.get("env") or os.environ),
                           passed=passed, session=bool(options.get("start_new_session")))  # fmt: skip

        def poll(self) -> int | None:
            """Its exit status, None while it runs."""
            if not self.is_ours:
                return super().poll()
            self.returncode = ask([], poll=self.pid) if self.returncode is None else self.returncode
            return self.returncode

        def wait(self, timeout: float | None = None) -> int:
            """Wait for its end."""
            if not self.is_ours:
                return super().wait(timeout)
            end = time.monotonic() + (1e9 if timeout is None else timeout)
            while self.poll() is None:
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                time.sleep(0.02)
            return self.returncode

        def send_signal(self, sig: int) -> None:
            """Unless it has ended."""
            if not self.is_ours:
                super().send_signal(sig)
            elif self.poll() is None:
                os.kill(self.pid, sig)

        def __del__(self, *_: Any, **__: Any) -> None:
            pass

    subprocess.Popen = OfSpare  # type: ignore[misc]


def _serve(asked: socket.socket, owner: int) -> NoReturn:
    """The spare: fork where it is asked to start something, say how that has ended, until the owner ends."""
    prctl = ctypes.CDLL(None).prctl
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    prctl(15, _SPARE.encode())  # PR_SET_NAME
    if os.getppid() != owner:
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ended: dict[int, int] = {}
    while True:
        try:
            _answer(asked, ended)
        except ConnectionError:  # the owner is gone, in the midst of a question or an answer too
            os._exit(0)


def _answer(asked: socket.socket, ended: dict[int, int]) -> None:
    message, files, _, _ = socket.recv_fds(asked, 200_000, 10)
    if not message:
        os._exit(0)
    question = json.loads(message)
    if "poll" in question:
        pid = question["poll"]
        if pid not in ended and (done := os.waitpid(pid, os.WNOHANG))[0]:
            ended[pid] = os.waitstatus_to_exitcode(done[1])
        asked.send(json.dumps(ended.get(pid)).encode())
        return
    pid = os.fork()
    if not pid:
        asked.close()
        end_as(partial(_started, question, files))
    for file in files:
        os.close(file)
    asked.send(json.dumps(pid).encode())


def _started(question: dict[str, Any], files: list[int]) -> Any:
    ctypes.CDLL(None).prctl(15, b"python")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if question["session"]:
        os.setsid()
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, _HIGH) for file in files]
    for file, number in zip(high, [1, 2, *question["passed"]], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(question["environment"])
    if "SFTLAB_FIRST_RANK" in os.environ:  # the spare stands for it: it ends when that one does
        os.environ["SFTLAB_FIRST_RANK"] = str(os.getppid())
    keep_spare()
    return _sftlab(question["arguments"])
