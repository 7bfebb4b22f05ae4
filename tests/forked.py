"""``python ...`` without 5 s of imports: a process that has imported what others wrote forks for each call.

What is forked is a process of its own, with its folder, environment, arguments, streams, signals and exit status;
sftlab itself is imported by the child. What ``python -m sftlab`` starts, ranks and trainings of a study, is forked as
well, as tools/forking.py does it. What a start imports, and signals during it, are tested on whole processes. A child
ends when its threads and ``atexit`` are done: Python would clear for two seconds more what the server imported.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import forking

HEAVY = (
    "torch", "torch._dynamo", "torch.distributed.fsdp", "lightning.pytorch", "lightning.pytorch.cli", "datasets",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "transformers.generation",
    "jsonargparse", "omegaconf", "torch.utils.tensorboard", "scipy.stats", "matplotlib.figure",
)  # fmt: skip


class Started:
    """A process that was forked, as ``subprocess.Popen`` would have it."""

    def __init__(self, forking: Forking, **asked: Any) -> None:
        self.forking, self.args, self.returncode = forking, asked["words"], None
        self.streams = Path(tempfile.mkdtemp(prefix="streams-"))
        self.pid = forking.ask(start={**asked, "streams": str(self.streams)})

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = self.forking.ask(poll=self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; what it printed on both streams. One that takes too long is killed."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        printed = [(self.streams / name).read_text() for name in ("out", "err")]
        shutil.rmtree(self.streams)
        return printed[0], printed[1]


class Forking:
    """The process that forks; one for each process of the tests, started by the first call."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def ask(self, **question: Any) -> Any:
        """A line there, a line back."""
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words: list[str], folder: Path, environment: dict[str, str]) -> Started:
        """Run ``python WORDS`` in ``folder``: ``-m MODULE``, ``-c TEXT`` or a script, with arguments."""
        return Started(self, words=words, folder=str(folder), environment=environment)

    def call(
        self, words: list[str], folder: Path, environment: dict[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        process = self.start(words, folder, environment)
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(words, process.returncode or 0, out, err)


FORKING = Forking()


def _serve() -> dict | None:
    """Fork for each line that asks for it; what a child was asked for, None at the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is not an answer
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.collect()
    gc.freeze()  # or each child goes through all of it, and so copies it
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            return question["start"]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _become(asked: dict) -> None:
    """This process is now the one that was asked for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
    for number, name in enumerate((os.devnull, f"{asked['streams']}/out", f"{asked['streams']}/err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [asked["folder"], *filter(None, paths), *sys.path[1:]]
    kind, *rest = asked["words"]
    if kind == "-m":
        forking.keep_spare()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if (asked := _serve()) is not None:
        forking.end_as(partial(_become, asked))
