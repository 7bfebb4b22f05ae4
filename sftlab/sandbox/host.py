"""Runs generated code in a sandbox and grades it outside its reach.

A check starts two processes (see ``guest.py``): the *program* runs the generated code and only answers calls, the
*tests* run the trusted test code and call it. Each lives in a sandbox of its own:

- bubblewrap, every namespace unshared: no network, its own process tree, no ``/proc``, no capability, an empty
  environment; the file system is the base interpreter, its standard library and the shared libraries these need, all
  read-only, and 16 MiB of memory at ``/tmp``. Neither home, site-packages nor the tests are there to be read.
- Limits on CPU time, address space, file size, open files and processes. Root is exempt from the limit on processes,
  so under root the namespace maps a second, unprivileged user, which the process becomes before it reads any program.
- A filter of system calls (see ``syscalls.py``): no memory that escapes the limits, no new namespaces, no tracing.
- A wall clock: at its end the first process of the namespace is killed, and with it, by the kernel, all others.

The tests are sandboxed like the program: they may come from a file off the internet, and what a program returns can
make an honest test slow or large. Memory is bounded by the process: a program may use ``MAX_PROCESSES`` times
``memory_mb``.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftlab.sandbox.system_calls import seccomp_filter

MAX_PROCESSES = 8
"""Processes and threads that one program may have."""
NOBODY = 65534
"""User and group inside the sandbox."""
SCRATCH_BYTES = 16 << 20
"""Size of ``/tmp`` inside the sandbox."""
MAX_FILES = 10_000
"""Files in it, empty ones and folders too: each costs the kernel memory that no limit of a process counts."""
_LOOK_SECONDS = 0.05  # seconds between two counts of them

MISSING = (
    "generated code runs only in a sandbox, and {what}. "
    "Install bubblewrap 0.7 or newer (Debian and Ubuntu: apt-get install bubblewrap), or, if you trust the code as you "
    "trust your own, give the task the option isolation: subprocess (limits only; it can read, write and connect as "
    "you can)."
)


Isolation = Literal["bubblewrap", "subprocess"]


class SandboxMissing(ValueError):
    """The requested isolation is not available on this machine."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        passed: Whether all tests passed; None if no verdict is possible (the tests themselves are at fault).
        reason: One short line of explanation.
        seconds: Wall-clock time.
        is_late: Whether the time was up before the tests had ended.
    """

    passed: bool | None
    reason: str
    seconds: float
    is_late: bool = False


def _parents(paths: Sequence[str]) -> list[str]:
    """Return the folders that lead to the paths, outermost first."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents if str(parent) != "/"})


@functools.cache
def _view() -> tuple[str, ...]:
    """Return bubblewrap options for the interpreter, its standard library and their shared libraries."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    roots = (Path(sys.base_prefix) / "lib", Path(sys.base_exec_prefix) / sys.platlibdir)
    folders = sorted({os.path.realpath(root / version) for root in roots if (root / version).is_dir()})
    binaries = [python, *(path for folder in folders for path in glob.glob(f"{folder}/lib-dynload/*.so"))]
    listing = subprocess.run(["ldd", *(path for path in binaries if "_tkinter" not in path)], capture_output=True)
    libraries = {os.path.normpath(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout.decode())}
    shown = [python, *sorted(libraries), *(["/etc/ld.so.cache"] if os.path.exists("/etc/ld.so.cache") else [])]
    options: list[str] = []
    for parent in _parents([*shown, *folders, "/dev/null"]):
        options += ["--perms", "0755", "--dir", parent]
    for path in [*folders, *shown]:
        options += ["--ro-bind", os.path.realpath(path), path]
    for folder in folders:
        for packages in (f"{folder}/site-packages", f"{folder}/dist-packages"):
            options += ["--tmpfs", packages, "--remount-ro", packages] if os.path.isdir(packages) else []
    options += ["--dev-bind", "/dev/null", "/dev/null", "--perms", "1777", "--size", str(SCRATCH_BYTES)]
    return (*options, "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp")


@functools.cache
def _source() -> str:
    return Path(__file__).with_name("guest.py").read_text(encoding="utf-8")


def _python(job: dict[str, Any]) -> list[str]:
    """Return the command of a bare interpreter that runs ``guest.py``: no site, no user folder."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [python, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", _source(), json.dumps(job)]


class _Cell:
    """One isolated process; ``kill`` always ends it and everything that it started."""

    def __init__(self, limits: dict[str, int], wrapper: str | None, cwd: str, task: int | None, **line: int) -> None:
        self.first: int | None = None
        self.kept: dict[str, int] = {}
        job: dict[str, Any] = {"limits": limits, **line}
        passed = list(line.values())
        common: dict[str, Any] = {
            # A fixed hash seed makes the order of a set of strings, and so the verdict, reproducible.
            "env": {"PYTHONHASHSEED": "0", "HOME": "/tmp" if wrapper else cwd, "PATH": "/usr/bin:/bin"},
            "cwd": cwd,
            "start_new_session": True,
            "stdin": subprocess.DEVNULL if task is None else task,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE if wrapper else subprocess.DEVNULL,
        }
        with contextlib.ExitStack() as theirs:
            command = _python(job) if wrapper is None else self._wrapped(wrapper, job, passed, theirs)
            self.process = subprocess.Popen(command, pass_fds=passed, **common)
        if wrapper is not None:
            self._enter()

    def _pipe(self, name: str, ours: int, theirs: contextlib.ExitStack) -> int:
        """Create a pipe: keep its end number ``ours`` under a name, return the other one for the child."""
        ends = os.pipe()
        self.kept[name] = ends[ours]
        theirs.callback(os.close, ends[1 - ours])
        return ends[1 - ours]

    def _wrapped(self, wrapper: str, job: dict[str, Any], passed: list[int], theirs: contextlib.ExitStack) -> list[str]:
        """Return the command inside bubblewrap; add to the file descriptors passed to it."""
        told, go = self._pipe("told", 0, theirs), self._pipe("go", 1, theirs)
        job["alive"] = self._pipe("alive", 1, theirs)
        passed += [told, go, job["alive"]]
        options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        options += ["--info-fd", str(told)]
        if calls := seccomp_filter():
            passed.append(self._pipe("filter", 1, theirs))
            os.write(self.kept["filter"], calls)
            os.close(self.kept.pop("filter"))
            options += ["--seccomp", str(passed[-1])]
        if os.geteuid() == 0:
            job["limits"] = {"uid": NOBODY, **job["limits"]}
            options += ["--userns-block-fd", str(go), "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            options += ["--uid", str(NOBODY), "--gid", str(NOBODY)]
        return [wrapper, *options, *_view(), "--", *_python(job)]

    def _enter(self) -> None:
        """Find the first process of the namespace; under root, map its users: root, and the one that it becomes."""
        info = b""
        while b"}" not in info and (part := os.read(self.kept["told"], 4096)):
            info += part
        try:
            number = json.loads(info)["child-pid"]
            self.first, self._number = os.pidfd_open(number), number
            if os.geteuid() == 0:
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{number}/{name}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
                os.write(self.kept["go"], b"1")
        except (ValueError, LookupError, OSError) as error:
            self.process.kill()
            said = self.process.stderr.read(2000).decode(errors="replace").strip() if self.process.stderr else ""
            self.bury()
            raise SandboxMissing(MISSING.format(what=f"bubblewrap does not work here ({said or error})")) from None

    def num_files(self) -> int:
        """Count the files in its ``/tmp``, as the kernel does; 0 if it has none of its own, or it cannot be read."""
        if self.first is None:
            return 0
        try:
            scratch = os.statvfs(Path(f"/proc/{self._number}/root", "tmp"))
            signal.pidfd_send_signal(self.first, 0)  # still the same process
        except OSError:
            return 0
        return scratch.f_files - scratch.f_ffree

    def kill(self) -> None:
        """Kill the process and everything in its namespace, or, without one, in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.first is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self.first, signal.SIGKILL)

    def bury(self) -> None:
        """Wait for the end after ``kill``, and close the file descriptors."""
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (*self.kept.values(), *([] if self.first is None else [self.first])):
            os.close(end)
        if self.process.stderr is not None:
            self.process.stderr.close()


def _hear(end: int, seconds: float, is_over: Callable[[], bool]) -> tuple[bytes, str]:
    """Read a pipe until its other end closes; return also what was exceeded before that: ``time``, or a bound.

    ``is_over`` is called once both processes have reported: before that, ``/tmp`` is not yet theirs.
    """
    said, deadline, poll = b"", time.monotonic() + seconds, select.poll()
    poll.register(end, select.POLLIN)
    while len(said) < 1 << 16:
        left = deadline - time.monotonic()
        if poll.poll(max(0.0, min(left, _LOOK_SECONDS)) * 1000):
            if not (part := os.read(end, 1 << 16)):
                break
            said += part
        elif left <= 0:
            return said, "time"
        elif said and is_over():
            return said, "files"
    return said, ""


class Sandbox:
    """Checks generated programs against tests.

    Args:
        isolation: ``bubblewrap``, or by name the weaker ``subprocess``: the same limits and the same verdict rules in a
            scratch folder with an empty environment, but no boundary; the program can read, write and connect as you.
        seconds: Wall-clock time of one check, start included.
        memory_mb: Address space of one process, in MiB.
    """

    def __init__(self, isolation: Isolation = "bubblewrap", seconds: float = 5.0, memory_mb: int = 512) -> None:
        if isolation not in ("bubblewrap", "subprocess"):
            raise ValueError(f"isolation: {isolation!r} is unknown; choose bubblewrap or subprocess")
        if seconds <= 0 or memory_mb < 64:
            raise ValueError(f"seconds: {seconds}, memory_mb: {memory_mb}; need more than 0 seconds and 64 MiB or more")
        self.isolation, self.seconds, self.memory_mb = isolation, seconds, memory_mb
        self._missing: str | None = None
        self._probed = False

    def missing(self) -> str | None:
        """Return why this sandbox cannot be used here, after a trial run on first use; None if it can."""
        if not self._probed:
            self._missing, self._probed = self._probe(), True
        return self._missing

    def require(self) -> None:
        """Raise, with what to do, if the sandbox cannot be used.

        Raises:
            SandboxMissing: bubblewrap is not installed or not permitted here.
        """
        if reason := self.missing():
            raise SandboxMissing(reason)

    def _probe(self) -> str | None:
        if self.isolation == "bubblewrap" and shutil.which("bwrap") is None:
            return MISSING.format(what="bubblewrap (the command bwrap) is not installed")
        try:
            outcome = self._check("def f(x):\n    return x + 1", "assert f(1) == 2", ["f"], "", max(20.0, self.seconds))
        except SandboxMissing as error:
            return str(error)
        return None if outcome.passed else MISSING.format(what=f"a trial run failed ({outcome.reason})")

    def check(self, solution: str, test: str, names: Sequence[str], prompt: str = "") -> Outcome:
        """Run tests on a generated program.

        Arguments and results cross as plain data: numbers, text, bytes, lists, tuples, sets, dicts, ranges, iterators
        (read to their end). Other objects stay with the program; tests may call them and use their attributes. What a
        program does to its arguments in place is not seen by the tests.

        Args:
            solution: Source of the whole program.
            test: Source of the tests: it passes if it runs to its end.
            names: Globals of the program that the tests use.
            prompt: Trusted source that the tests may use, run before them on their side.

        Raises:
            SandboxMissing: The isolation is not available.
        """
        self.require()
        return self._check(solution, test, names, prompt, self.seconds)

    def _limits(self, seconds: float) -> dict[str, int]:
        """Return the limits of one process, by the names of ``resource``."""
        cpu, memory = math.ceil(seconds) + 1, self.memory_mb << 20
        return {"cpu": cpu, "as": memory, "fsize": 1 << 20, "nofile": 64, "core": 0, "nproc": MAX_PROCESSES + 1}

    def _check(self, solution: str, test: str, names: Sequence[str], prompt: str, seconds: float) -> Outcome:
        start = time.monotonic()
        wrapper = shutil.which("bwrap") if self.isolation == "bubblewrap" else None
        limits = self._limits(seconds)
        task = {"solution": solution, "test": test, "names": list(names), "prompt": prompt}
        pipes = {name: os.pipe() for name in ("requests", "answers", "verdict")}
        heard, asked = pipes["verdict"][0], os.memfd_create("task")
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, heard)
            with contextlib.ExitStack() as theirs:
                for end in (asked, *(end for pipe in pipes.values() for end in pipe if end != heard)):
                    theirs.callback(os.close, end)
                folder = "/"
                if wrapper is None:  # in a namespace the scratch space is in memory
                    scratch = tempfile.TemporaryDirectory(prefix="sftlab-check-", ignore_cleanup_errors=True)
                    folder = ours.enter_context(scratch)
                Path(f"/proc/self/fd/{asked}").write_text(json.dumps(task))
                line = {"requests": pipes["requests"][0], "answers": pipes["answers"][1]}
                program = _Cell(limits, wrapper, folder, None, **line)
                ours.callback(program.bury)
                ours.callback(program.kill)
                line = {
                    "requests": pipes["requests"][1],
                    "answers": pipes["answers"][0],
                    "verdict": pipes["verdict"][1],
                }
                tests = _Cell(limits, wrapper, folder, asked, **line)
                ours.callback(tests.bury)
                ours.callback(program.kill)
                ours.callback(tests.kill)
            left = max(0.1, seconds - (time.monotonic() - start))
            said, over = _hear(heard, left, lambda: max(program.num_files(), tests.num_files()) > MAX_FILES)
        return _outcome(said, over, seconds, time.monotonic() - start)


def _outcome(said: bytes, over: str, limit: float, taken: float) -> Outcome:
    """Parse what the tests' process wrote: that it is ready, then its verdict; each is a line of JSON."""
    lines = [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]
    late = over == "time"
    if over == "files":
        return Outcome(False, f"more than {MAX_FILES:,} files in /tmp", taken)
    if not lines:
        return Outcome(None, f"the sandbox did not start{f' within {limit:g} s' if late else ''}", taken)
    if len(lines) == 1:
        return Outcome(False, f"timed out after {limit:g} s" if late else "the tests were killed", taken, late)
    return Outcome(lines[1]["passed"], str(lines[1]["reason"]), taken)
