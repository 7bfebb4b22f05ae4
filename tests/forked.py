"""``python ...`` without 5 s of imports: a process that has imported what others wrote forks for each call.

What is forked is a process of its own, with its folder, environment, arguments, streams and exit status; sftlab itself
is imported by the child. Only calls that run to their end go this way: signals, kills and what a start imports are
tested on whole processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAVY = (
    "torch", "torch._dynamo", "torch.distributed.fsdp", "lightning.pytorch", "lightning.pytorch.cli", "datasets",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "transformers.generation",
    "jsonargparse", "omegaconf", "torch.utils.tensorboard", "scipy.stats", "matplotlib.figure",
)  # fmt: skip


class Forking:
    """The process that forks; one for each process of the tests, started by the first call."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def call(
        self, words: list[str], folder: Path, environment: dict[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python WORDS`` in ``folder`` to its end: ``-m MODULE``, ``-c TEXT`` or a script, with arguments."""
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)  # fmt: skip
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as streams:
            out, err = Path(streams) / "out", Path(streams) / "err"
            asked = {"words": words, "folder": str(folder), "environment": environment, "timeout": timeout,
                     "out": str(out), "err": str(err)}  # fmt: skip
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())


FORKING = Forking()


def _serve() -> dict | None:
    """Fork for each line that comes; what a child was asked for, None at the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            return asked
        deadline = time.monotonic() + asked["timeout"]
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, 9)
            time.sleep(0.01)
        answers.write(f"{os.waitstatus_to_exitcode(done[1])}\n")
        answers.flush()
    return None


def _become(asked: dict) -> None:
    """This process is now the one that was asked for."""
    for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [asked["folder"], *filter(None, paths), *sys.path[1:]]
    kind, *rest = asked["words"]
    if kind == "-m":
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
        _become(asked)
