"""The sandbox: honest programs pass, hostile ones fail and leave nothing behind."""

import json
import math
import os
import shutil
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.sandbox.guest import decode, encode
from sftlab.sandbox.host import Sandbox, SandboxMissing

TEST = "for x in (3, 5):\n    assert f(x) == x * x\n"


HONEST = {
    "plain": ("def f(x):\n    return x * x\n", TEST),
    "prints": ("print('passed')\ndef f(x):\n    print(x)\n    return x * x\n", TEST),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n"
        "    with ThreadPoolExecutor(2) as pool:\n        return list(pool.map(lambda y: y * y, [x]))[0]\n",
        TEST,
    ),
    "scratch file": ("def f(x):\n    open('a', 'w').write(str(x * x))\n    return int(open('a').read())\n", TEST),
    "keeps state": (
        "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n",
        "assert [f(0), f(0), f(5)] == [1, 2, 3]",
    ),
    "raises as asked": (
        "def f(x):\n    raise ValueError('negative')\n",
        "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'negative'\nelse:\n    assert False",
    ),
    "not a number": ("def f(x):\n    return x\n", "y = f(float('nan'))\nassert y != y and f(float('-inf')) < 0"),
    "big": ("def f(x):\n    return x ** 99\n", "assert f(7) == 7 ** 99 and f(-7) == -(7 ** 99)"),
    "generator": ("def f(x):\n    yield from range(x)\n", "assert list(f(3)) == [0, 1, 2]"),
    "views": (
        "def f(x):\n    return ({1: 2}.keys(), {1: 2}.values(), {1: 2}.items())\n",
        "k, v, i = f(0)\nassert k == {1} and list(v) == [2] and list(i) == [(1, 2)]",
    ),
    "own objects": (
        "class Node:\n    def __init__(self, value):\n        self.value, self.left = value, None\n"
        "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)\n",
        "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2 and root.left.value == 2",
    ),
    "reads no input": ("def f(x):\n    try:\n        input()\n    except EOFError:\n        return x * x\n", TEST),
    "the same order every time": ("def f(x):\n    return list({'a', 'b', 'c', 'd'})\n", "assert f(0) == f(1)"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name: str, sandbox: Sandbox) -> None:
    source, test = HONEST[name]
    outcome = sandbox.check(source, test, ["Node", "depth"] if "Node" in test else ["f"])
    assert outcome.passed is True, outcome


def test_the_tests_use_the_prompt_on_their_own_side(sandbox: Sandbox) -> None:
    prompt = "def double(x):\n    return 2 * x\n"
    cheat = "def double(x):\n    return 0\ndef f(x):\n    return 0\n"
    assert sandbox.check(prompt + "def f(x):\n    return x + x", "assert f(4) == double(4)", ["f"], prompt).passed
    assert sandbox.check(prompt + cheat, "assert f(4) == double(4)", ["f"], prompt).passed is False


@pytest.mark.parametrize("test", ["import no_such_module", "assert f(", "f(lambda: 0)", "f(object())"])
def test_faults_of_the_tests_are_no_verdict(test: str, sandbox: Sandbox) -> None:
    assert sandbox.check("def f(x):\n    return x", test, ["f"]).passed is None


def test_import_error_of_the_program_is_its_own(sandbox: Sandbox) -> None:
    assert sandbox.check("def f(x):\n    import no_such_module", "f(1)", ["f"]).passed is False


def test_the_program_sees_the_interpreter_alone(sandbox: Sandbox) -> None:
    look = "import os, sys\ndef f(what):\n    return eval(what)\n"
    test = f"""
assert set(f('dict(os.environ)')) <= {{'HOME', 'PATH', 'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}}
assert f('os.getuid()') == f('os.getgid()') == 65534
assert f('os.getcwd()') == '/tmp' and f('os.listdir()') == []
for place in ('/proc', '/sys', '/etc/passwd', '/home', '/usr/bin', {str(Path(__file__))!r}):
    assert f(f'os.path.exists({{place!r}})') is False, place
for place in ('/', '/dev', '/lib', f('os.path.dirname(os.__file__)')):
    assert f(f'os.access({{place!r}}, os.W_OK)') is False, place
assert f('[os.listdir(p + "/site-packages") for p in sys.path if os.path.isdir(p + "/site-packages")]') in ([], [[]])
"""
    outcome = sandbox.check(look, test, ["f"])
    assert outcome.passed, outcome


def test_no_capability_is_left_or_can_be_had(sandbox: Sandbox) -> None:
    look = """
import ctypes
def f():
    libc, head, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, data) == 0
    effective, permitted, no_new_privileges = (data[0], data[3]), (data[1], data[4]), libc.prctl(39, 0, 0, 0, 0)
    return effective, permitted, no_new_privileges
"""
    outcome = sandbox.check(look, "assert f() == ((0, 0), (0, 0), 1)", ["f"])
    assert outcome.passed, outcome


def test_refusal_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(SandboxMissing) as caught:
        Sandbox().check("def f(x):\n    return x * x", TEST, ["f"])
    message = str(caught.value)
    assert "\n" not in message
    for word in ("bubblewrap", "not installed", "apt-get install bubblewrap", "isolation: subprocess"):
        assert word in message


def test_refusal_when_bubblewrap_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxMissing, match="No permissions to create new namespace"):
        Sandbox().require()


def test_weaker_isolation_by_name_keeps_the_rules_of_the_verdict() -> None:
    sandbox = Sandbox("subprocess", seconds=1.5)
    assert sandbox.check("def f(x):\n    return x * x", TEST, ["f"]).passed
    equal = "class Equal:\n    __eq__ = lambda a, b: True\ndef f(x):\n    return Equal()\n"
    calm = "import builtins\nbuiltins.AssertionError = KeyError\ndef f(x):\n    return -1\n"
    for source in (equal, calm, "import os\nos._exit(0)\n", "def f(x):\n    while True:\n        pass\n"):
        assert sandbox.check(source, TEST, ["f"]).passed is False


@pytest.mark.parametrize("options", [{"isolation": "none"}, {"seconds": 0}, {"memory_mb": 1}])
def test_bad_options_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sandbox(**options)


atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
hashable = st.recursive(atoms, lambda s: st.tuples(s, s) | st.frozensets(s), max_leaves=5)
plain = st.recursive(
    hashable | st.fractions() | st.decimals(allow_nan=False),
    lambda s: st.lists(s) | st.tuples(s) | st.sets(hashable) | st.dictionaries(hashable, s),
    max_leaves=10,
)


@given(plain)
def test_plain_data_crosses_unchanged(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value, lambda _: pytest.fail("not plain")))), lambda _: None)
    if isinstance(value, list | tuple | dict | set | frozenset) and "nan" in repr(value):
        assert type(back) is type(value) and len(back) == len(value)
    elif isinstance(value, float) and math.isnan(value):
        assert math.isnan(back)
    else:
        assert type(back) is type(value) and (back == value or repr(back) == repr(value))


@pytest.mark.parametrize(
    "value", [Decimal("1.50"), Fraction(1, 3), range(2, 9, 3), bytearray(b"a"), -0.0, math.inf, 2**53]
)
def test_numbers_and_the_like_keep_their_type(value: Any) -> None:
    assert repr(decode(encode(value, lambda _: 0), lambda _: None)) == repr(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_nothing_that_arrives_does_harm(form: Any) -> None:
    try:
        decode(form, lambda _: None)
    except Exception as error:
        assert isinstance(error, ValueError | TypeError | KeyError | ArithmeticError)


def test_files_in_its_folder_are_counted_and_too_many_end_a_program(sandbox: Sandbox) -> None:
    make = (
        "import os\ndef f(n):\n    for i in range(n):\n        os.close(os.open(f'/tmp/{i}', os.O_CREAT))\n"
        "    return n\n"
    )
    assert sandbox.check(make, "assert f(500) == 500", ["f"]).passed
    flooded = sandbox.check(make, "f(10**9)", ["f"])
    assert not flooded.passed and flooded.reason == "more than 10,000 files in /tmp" and not flooded.is_late
