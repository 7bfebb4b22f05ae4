"""The small Python agrees with Python on what it takes, and lets nothing else through."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.lab.abilities import lab_conversations, lab_problems
from sftlab.lab.python import LabPythonError, run_function

_STEPS = st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 30)), min_size=1, max_size=5)


def _applied(value: int, steps: list[tuple[str, int]]) -> int:
    for sign, k in steps:
        value = {"+": value + k, "-": value - k, "*": value * k}[sign]
    return value


@given(_STEPS, st.lists(st.integers(-50, 50), max_size=20))
def test_interpreter_agrees_with_python(steps, items):
    lines = [f"x = x {sign} {k}" for sign, k in steps]
    alone = "\n    ".join(["def f(x):", *lines, "return x"])
    loop = "def f(items):\n    out = []\n    for x in items:\n        if x > 3:\n            " + "\n            ".join(
        lines
    )
    loop += "\n        out.append(x)\n    return out"
    assert [run_function(alone, [x]) for x in items] == [_applied(x, steps) for x in items]
    assert run_function(loop, [items]) == [_applied(x, steps) if x > 3 else x for x in items]


def test_interpreter_agrees_with_python_on_the_generated_functions():
    told = list(lab_conversations("code", 300, split="test"))
    for problem, conversation in zip(lab_problems("code", 300), told, strict=True):
        source = conversation.turns[-1].text
        scope: dict = {}
        exec(source, scope)  # our own text, written by the generator above
        name = re.match(r"def (\w+)\(", source)[1]
        assert f" {name} " in problem.prompts[0]
        assert all(run_function(source, [value]) == scope[name](value) for value in (-3, 0, 8, 99))
        [[check, tests]] = problem.reference
        assert check == "function"
        assert all(run_function(source, [value]) == scope[name](value) == wanted for value, wanted in tests)


def test_arguments_are_left_as_they_were():
    items = [1, 2]
    assert run_function("def f(a):\n    a.append(3)\n    return sum(a) + max(a) - len(a)", [items]) == 6
    assert items == [1, 2]


_BODIES = [
    "while True:\n        pass",
    "import os",
    "return x.__class__",
    "return (lambda: 1)()",
    "return [y for y in range(3)]",
    "return f(x)",
    "return 10 ** 10",
    "return 1 << 5",
    "return 1 / 0",
    "return 1 // 0",
    "return 'a' * 5",
    "return 1.5",
    "return y",
    "return open(x)",
    "return eval(x)",
    "return range(10 ** 9)",
    "return x[0]",
    "a = b = 1",
    "del x",
    "global x",
    "return f'{x}'",
    "return (y := 3)",
    "return min([])",
    "return abs([])",
    "return sum(*[[1]])",
    "return len(obj=x)",
    "for i in range(-900, 900):\n        pass",
    "for i in range(1000):\n        for j in range(1000):\n            x = x + 1",
    "for i in range(300):\n        x = x * x + 2",
    "out = []\n    out.append(out)",
    "a = [[1]]",
    "a = [1]\n    b = [a, a]",
    "out = [1]\n    for i in range(999):\n        for j in out:\n            out.append(1)",
    "return " + "9" * 5000,
    "return " + "-" * 9000 + "1",
    "return " + "(" * 3000 + "1" + ")" * 3000,
    "return " + "1+" * 4000 + "1",
    "return 1" + " " * 10_000,
]


@pytest.mark.parametrize("body", _BODIES, ids=lambda body: body[:30].replace("\n", " "))
def test_outside_of_the_subset_is_refused(body):
    start = time.monotonic()
    with pytest.raises(LabPythonError):
        run_function(f"def f(x):\n    {body}", [3])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = 1",
        "def f(x): return 1\nf(2)",
        "@f\ndef f(x): return 1",
        "def f(x, y): return 1",
        "def f(x=[]): return 1",
        "def f(*x): return 1",
        "def f(x, **y): return 1",
        "async def f(x): return 1",
        "class f: pass",
        "def f(x):",
        "\0",
    ],
)
def test_only_one_plain_function(source):
    with pytest.raises(LabPythonError):
        run_function(source, [3])


# Sources that are hard on a parser: a crash would end the process, so they run in one of their own.
_DEEP = """
import sys; sys.path.insert(0, {root!r})
from sftlab.lab.python import LabPythonError, run_function
for body in ["x" + ".a" * 4900, "x" + "[0]" * 3000, "x" + "()" * 4900, "~" * 9900 + "1", "not " * 2400 + "1",
             "lambda:" * 1300 + "1", "a**" * 3000 + "1", "x if x else " * 800 + "1", "1<" * 4000 + "1",
             "[" * 150 + "1" + "]" * 150, "{{" * 190 + "1" + "}}" * 190, "f'" + "{{x}}" * 3000 + "'",
             "await " * 1500 + "x"]:
    for source in ("def f(x):\\n    return " + body, "def f(x):\\n    " + body, body, "def f(x=" + body + "): pass"):
        try:
            run_function(source, [3])
            print("took", body[:20])
        except LabPythonError:
            pass
"""


def test_deep_sources_cannot_crash_the_process():
    root = str(Path(__file__).parents[2])
    found = subprocess.run([sys.executable, "-c", _DEEP.format(root=root)], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


_WORDS = "x y out 1 30 + - * // % > == ( ) [ ] , : for in if else return append def f range while = += len sum max"
_NODES = st.sampled_from([*_WORDS.split(), "\n", "\n    ", "\n        "])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(_NODES, max_size=40).map(" ".join)))
def test_any_text_gives_a_value_or_our_error(text):
    for source in (text, f"def f(x):\n    {text}", f"def f(x):\n    out = []\n    {text}\n    return out"):
        try:
            run_function(source, [3])
        except LabPythonError as error:
            assert str(error)
