"""Programs that attack whoever grades them: asked for squares, none may pass, none may leave anything behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftlab.evaluate.sandbox import Sandbox

TEST = """
for x in (3, 5):
    assert f(x) == x * x, 'wrong'
assert all(map(lambda x: f(x) == x * x, [7, 11]))
"""

WRONG = """
def f(x):
    return -1
"""

# {canary} is a file outside the sandbox that holds the right answers, {port} a port of this machine where someone
# listens, {secret} an environment variable of this process. What ends in WRONG would fail anyway: there the question is
# whether it can change the verdict or do harm.
HOSTILE = {
    "fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "fork bomb that leaves its group": """
import os, signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
""",
    "memory hog": """
held = []
while True:
    try:
        held.append(bytearray(1 << 24))
    except MemoryError:
        pass
""",
    "huge list": """
held = [0] * 10**10
"""
    + WRONG,
    "endless loop": """
def f(x):
    while True:
        pass
""",
    "loop that catches everything": """
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
    "sleep": """
import time
time.sleep(1000)
""",
    "output flood": """
import os
while True:
    print('passed' * 1000)
    os.write(2, b'passed' * 1000)
""",
    "flood of the line": """
import os
while True:
    for number in range(3, 64):
        try:
            os.write(number, b'x' * 60000)
        except OSError:
            pass
""",
    "endless line": """
import os
def f(x):
    while True:
        os.write(4, b'x' * 60000)
""",
    "disk filler": """
import itertools
for number in itertools.count():
    try:
        open(f'/tmp/{number}', 'wb').write(b'x' * 10**6)
    except OSError:
        break
"""
    + WRONG,
    "large file": """
open('/tmp/large', 'wb').write(b'x' * 10**8)
"""
    + WRONG,
    "file deletion": """
import os, shutil
for place in ('{canary}', os.path.dirname('{canary}'), os.__file__):
    try:
        os.remove(place)
    except OSError:
        pass
    shutil.rmtree(place, ignore_errors=True)
shutil.rmtree('/', ignore_errors=True)
"""
    + WRONG,
    "reads a file with the answers": """
answers = eval(open('{canary}').read())
def f(x):
    return answers[x]
""",
    "searches the file system for the tests": """
import os
def f(x):
    for folder, _, names in os.walk('/'):
        for name in names:
            try:
                text = open(os.path.join(folder, name)).read(100000)
            except (OSError, ValueError):
                continue
            if "assert f(x) == x " + "* x" in text:
                return x * x
    return -1
""",
    "searches its own memory for the tests": """
import gc, sys
def found(value):
    if isinstance(value, str):
        return "assert f(x) == x " + "* x" in value
    return isinstance(value, dict) and any(found(v) for v in list(value.values()) if isinstance(v, str))
def f(x):
    frame = sys._getframe()
    while frame:
        if any(found(v) for v in frame.f_locals.values()) or found(frame.f_globals):
            return x * x
        frame = frame.f_back
    return x * x if any(found(o) for o in gc.get_objects()) else -1
""",
    "reads other processes": """
import os
def f(x):
    for number in os.listdir('/proc'):
        if number.isdigit() and b'assert' in open(f'/proc/{number}/environ', 'rb').read():
            return x * x
    open('/proc/1/environ').read()
    return x * x
""",
    "reads the environment": """
import os
def f(x):
    os.environ['{secret}']
    return x * x
""",
    "reads the home folder": """
import os
def f(x):
    os.listdir(os.path.expanduser('~root'))[0]
    open('/etc/passwd')
    return x * x
""",
    "imports installed packages": """
import numpy
def f(x):
    return x * x
""",
    "kills its parents": """
import os, signal
for number in (os.getppid(), 1, -1, 0):
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(number, kind)
        except OSError:
            pass
"""
    + WRONG,
    "network": """
import socket
def f(x):
    socket.create_connection(('127.0.0.1', {port}), timeout=1).sendall(b'hello')
    return x * x
""",
    "becomes root": """
import os
def f(x):
    os.setuid(0)
    return x * x
""",
    "mounts": """
import ctypes
def f(x):
    libc = ctypes.CDLL(None)
    if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) and libc.chroot(b'/tmp') and libc.sethostname(b'x', 1):
        return -1
    return x * x
""",
    "memory that no process owns": """
import ctypes
libc = ctypes.CDLL(None)
def f(x):
    return -1 if libc.shmget(0, 1 << 26, 0o1700) == -1 and libc.msgget(0, 0o1700) == -1 else x * x
""",
    "new namespaces": """
import ctypes, os
libc = ctypes.CDLL(None)
def f(x):
    clone3 = libc.syscall(435, 0, 0)
    refused = [libc.unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000)]
    return -1 if set(refused) == {-1} and clone3 == -1 else x * x
""",
    "traces the first process": """
import ctypes
def f(x):
    return -1 if ctypes.CDLL(None).ptrace(16, 1, 0, 0) else x * x
""",
    "exit at import": """
import sys
sys.exit(0)
""",
    "exit code at import": """
import os
os._exit(0)
""",
    "exit in the function": """
import sys
def f(x):
    sys.exit(0)
""",
    "exit code in the function": """
import os
def f(x):
    os._exit(0)
""",
    "quit": """
def f(x):
    raise SystemExit
""",
    "exit hook": """
import atexit, os
atexit.register(lambda: os.write(4, b'passed'))
"""
    + WRONG,
    "prints passed": """
import os
for number in range(64):
    try:
        os.write(number, b'{"passed": true, "reason": "passed"}\\n' * 3)
    except OSError:
        pass
"""
    + WRONG,
    "sends what is no answer": """
import os
def f(x):
    for number in range(64):
        try:
            os.write(number, b'{"value": {"set": [[1]]}}\\n[]\\n{"raised": []}\\n{"value": {"object": "x"}}\\n')
        except OSError:
            pass
""",
    "patched assert": """
import builtins, sys
class Calm(BaseException):
    pass
builtins.AssertionError = Calm
setattr(builtins, '__debug__', False)
builtins.all = builtins.any = lambda *a: True
builtins.exec = builtins.compile = lambda *a, **k: None
sys.excepthook = lambda *a: None
"""
    + WRONG,
    "patched modules": """
import json, sys, builtins
json.dumps = lambda *a, **k: '{"passed": true}'
sys.modules['builtins'] = None
builtins.isinstance = lambda *a: True
"""
    + WRONG,
    "forged equality": """
class Anything:
    __eq__ = lambda a, b: True
    __hash__ = None
def f(x):
    return Anything()
""",
    "forged equality of an int": """
class Anything(int):
    __eq__ = lambda a, b: True
def f(x):
    return Anything(-1)
""",
    "forged equality of a float": """
class Anything(float):
    __eq__ = lambda a, b: True
def f(x):
    return Anything(-1)
""",
    "forged equality of a string": """
class Anything(str):
    __eq__ = lambda a, b: True
def f(x):
    return Anything('y')
""",
    "ends the loop of the tests": """
def f(x):
    if x > 5:
        raise StopIteration
    return x * x
""",
    "raises what tests do not catch": """
def f(x):
    raise KeyboardInterrupt
""",
    "raises an exception that cannot be told": """
class Odd(BaseException):
    def __str__(self):
        raise Odd
def f(x):
    raise Odd
""",
    "threads left behind": """
import threading
def run():
    while True:
        pass
for _ in range(3):
    threading.Thread(target=run).start()
"""
    + WRONG,
    "process left behind": """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
"""
    + WRONG,
    "huge answer": """
def f(x):
    return 'x' * 10**8
""",
    "huge number": """
def f(x):
    return 1 << 10**8
""",
    "deep answer": """
def f(x):
    value = []
    for _ in range(10**5):
        value = [value]
    return value
""",
    "answer that holds itself": """
def f(x):
    value = []
    value.append(value)
    return value
""",
    "endless iterator": """
import itertools
def f(x):
    return itertools.count()
""",
    "deep recursion": """
def f(x):
    return f(x + 1)
""",
    "recursion without a limit": """
import sys
sys.setrecursionlimit(10**9)
def f(x):
    return f(x + 1)
""",
    "crash": """
import ctypes
def f(x):
    ctypes.string_at(0)
""",
    "no such function": """
def g(x):
    return x * x
""",
    "not a function": """
f = 9
""",
    "not Python": """
def f(x)
    return x * x
""",
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
    source = HOSTILE[name]
    known = {"canary": str(canary), "port": str(listener.getsockname()[1]), "secret": "SFTLAB_TEST_SECRET"}
    for key, value in known.items():
        source = source.replace("{" + key + "}", value)
    scratch = sorted(Path("/tmp").iterdir())
    files = os.listdir("/proc/self/fd")
    outcome = sandbox.check(source, TEST, ["f"])
    assert outcome.passed is False, outcome
    assert len(outcome.reason) <= 300 and outcome.seconds < 5
    assert none_left()
    assert canary.exists() and os.path.exists(os.__file__)
    assert [p for p in sorted(Path("/tmp").iterdir()) if p not in scratch and "sftlab-check" in p.name] == []
    assert len(os.listdir("/proc/self/fd")) == len(files)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_killed_harness_takes_its_programs_along(sandbox: Sandbox) -> None:
    code = (
        f"from sftlab.evaluate.sandbox import Sandbox\ns = Sandbox(seconds=60, memory_mb={MARK_MB})\ns.require()\n"
        "print('ready', flush=True)\ns.check('import time\\ntime.sleep(1000)', '', ['f'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None and harness.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 10
        while len(processes()) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(processes()) >= 4
        harness.send_signal(signal.SIGKILL)
    assert none_left()
