"""Programs that attack whoever grades them: asked for squares, none may pass, none may leave anything behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftlab.sandbox.host import Sandbox

TEST = """
for x in (3, 5):
    assert f(x) == x * x, 'wrong'
assert all(map(lambda x: f(x) == x * x, [7, 11]))
"""

WRONG = """
def f(x):
    return -1
"""

# The programs are kept in a text file. {canary} is a file outside the sandbox that holds the right answers, {port} a
# port of this machine where someone listens, {secret} an environment variable of this process. What ends in {wrong}
# would fail anyway: there the question is whether it can change the verdict or do harm.
PARTS = re.split(r"^=== (.*)\n", Path(__file__).with_name("hostile.txt").read_text(), flags=re.M)[1:]
HOSTILE = dict(zip(PARTS[::2], PARTS[1::2], strict=True)) | {
    "null byte": "def f(x):\n    return x * x\n\0",
    "empty": "",
    "a megabyte of nonsense": "f = " + "(" * 10**6,
}

# An odd size marks this session's processes: their command lines carry it.
MARK_MB = 200 + os.getpid() % 100


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    sandbox = Sandbox(seconds=1.5, memory_mb=MARK_MB)
    if reason := sandbox.missing():
        pytest.skip(reason)
    return sandbox


def processes() -> list[str]:
    """Processes of this session's checks that are still there."""
    found, mark = [], f'"as": {MARK_MB << 20}'.encode()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def none_left() -> bool:
    """Whether they are all gone; the kernel may need a moment to bury the last ones."""
    deadline = time.monotonic() + 3
    while processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_leave_nothing_behind(
    name: str, sandbox: Sandbox, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "answers"
    canary.write_text(str({x: x * x for x in range(20)}))
    monkeypatch.setenv("SFTLAB_TEST_SECRET", "assert")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = HOSTILE[name]
    known = {
        "canary": str(canary),
        "port": str(listener.getsockname()[1]),
        "secret": "SFTLAB_TEST_SECRET",
        "wrong": WRONG,
    }
    for key, value in known.items():
        source = source.replace("{" + key + "}", value)
    files = os.listdir("/proc/self/fd")
    outcome = sandbox.check(source, TEST, ["f"])
    assert outcome.passed is False, outcome
    assert len(outcome.reason) <= 300 and outcome.seconds < 5
    assert none_left()
    assert canary.exists() and os.path.exists(os.__file__)
    assert os.listdir(scratch) == []
    assert len(os.listdir("/proc/self/fd")) == len(files)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_killed_harness_takes_its_programs_along(sandbox: Sandbox, tmp_path: Path) -> None:
    code = (
        f"from sftlab.sandbox.host import Sandbox\ns = Sandbox(seconds=60, memory_mb={MARK_MB})\ns.require()\n"
        "print('ready', flush=True)\ns.check('import time\\ntime.sleep(1000)', '', ['f'])"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as harness:
        assert harness.stdout is not None and harness.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 10
        while len(processes()) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(processes()) >= 4
        harness.send_signal(signal.SIGKILL)
    assert none_left()
    assert os.listdir(tmp_path) == []
