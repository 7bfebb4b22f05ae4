"""Generated abilities: deterministic, split for good, checked exactly; and an interpreter that lets nothing through."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data.conversation import Conversation
from sftlab.lab.abilities import check_answer, lab_conversations, lab_problems, lab_tokenizer
from sftlab.lab.python import LabPythonError, run_function

ABILITIES = ("math", "code", "general")


def _answers(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.turns if turn.role == "assistant"]


def _digest() -> str:
    texts = [t.text for a in ABILITIES for c in lab_conversations(a, 50, seed=3) for t in c.turns]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_same_conversations_in_another_process():
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_abilities as test; print(test._digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == _digest()


@pytest.mark.parametrize("ability", ABILITIES)
def test_fewer_are_the_first_of_more_and_none_comes_twice(ability):
    many = list(lab_conversations(ability, 3000))
    assert list(lab_conversations(ability, 100)) == many[:100]
    assert len({c.uid for c in many}) == 3000
    assert list(lab_conversations(ability, 100, seed=1)) != many[:100]


@pytest.mark.parametrize("ability", ABILITIES)
def test_no_opening_is_both_trained_and_tested(ability):
    trained = {c.turns[0].text for seed in (0, 1) for c in lab_conversations(ability, 3000, seed=seed)}
    assert not trained & {p.prompts[0] for p in lab_problems(ability, 300)}


@pytest.mark.parametrize("ability", ABILITIES)
def test_own_answers_are_right_and_others_wrong(ability):
    problems, told = lab_problems(ability, 200), list(lab_conversations(ability, 200, split="test"))
    assert len({p.uid for p in problems}) == 200
    for problem, conversation in zip(problems, told, strict=True):
        assert list(problem.prompts) == [t.text for t in conversation.turns if t.role == "user"]
        texts = _answers(conversation)
        assert check_answer(ability, problem.reference, texts)[0]
        right, _, reason = check_answer(ability, problem.reference, [*texts[:-1], ""])
        assert not right and reason


@pytest.mark.parametrize("ability", ABILITIES)
def test_references_are_plain_json_and_every_kind_comes_up(ability):
    problems = lab_problems(ability, 200)
    assert json.loads(json.dumps([p.reference for p in problems])) == [p.reference for p in problems]
    kinds = sorted({p.kind for p in problems})
    for kind in kinds:
        left = [p for p in problems if p.kind == kind]
        assert len(left) > 200 / len(kinds) / 3
        told = lab_conversations(ability, len(left), exclude=[other for other in kinds if other != kind])
        assert len(list(told)) == len(left)
    with pytest.raises(ValueError, match="every kind is left out"):
        list(lab_conversations(ability, 1, exclude=kinds))


def test_second_turns_need_the_first():
    second: dict[str, set[str]] = {}
    for conversation in lab_conversations("general", 2000):
        if len(conversation.turns) == 4:
            _, _, question, answer = (turn.text for turn in conversation.turns)
            second.setdefault(question, set()).add(answer)
    assert second and all(len(answers) >= 25 for answers in second.values())


def test_math_answers_follow_from_the_words():
    for conversation in lab_conversations("math", 500):
        question, answer = (turn.text for turn in conversation.turns)
        held = int(re.search(r"has (\d+)", question)[1])
        for more, less, times in re.findall(r"(\d+) more\.|away (\d+) of|becomes (\d+) times", question):
            held = held + int(more) if more else held - int(less) if less else held * int(times)
        assert answer.endswith(f"\n#### {held}")
        for left, operation, right, result in re.findall(r"<<(\d+)([+*-])(\d+)=(\d+)>>", answer):
            value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[operation]
            assert value == int(result)


_RIGHT = ["#### 1200", "#### 1,200", "####1200.0", "so 7\n#### 7\n#### 1200"]
_WRONG = ["1200", "#### 120", "#### -1200", "####", "#### " + "9" * 9000]


@pytest.mark.parametrize("text", _RIGHT + _WRONG, ids=lambda text: text[:12])
def test_math_is_compared_by_number(text):
    assert check_answer("math", 1200, [text])[0] is (text in _RIGHT)


def test_code_is_scored_by_what_it_gives_not_how_it_looks():
    reference = [[1, 3], [7, 9]]
    assert check_answer("code", reference, ["def other(y):\n    z = 2\n    return z + y"])[0]
    assert not check_answer("code", reference, ["def other(y):\n    return 3"])[0]
    long = "def other(y):\n    out = []\n    for i in range(300):\n        out.append(i)\n    return out"
    _, _, reason = check_answer("code", reference, [long])
    assert reason.startswith("gives [0, 1, 2, 3, 4, 5, ...] for ")
    assert not check_answer("code", reference, ["Sure! x + 2"])[0]


def test_kinds_can_be_left_out():
    kinds = {p.kind for p in lab_problems("general", 200)}
    assert {"arithmetic", "python"} < kinds
    texts = [t.text for c in lab_conversations("general", 2000, exclude=["arithmetic", "python"]) for t in c.turns]
    assert not any("Python" in text or "plus" in text for text in texts)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="poetry"):
        list(lab_conversations("poetry", 1))
    with pytest.raises(ValueError, match=r"'sums' is not one of greeting"):
        list(lab_conversations("general", 1, exclude=["sums"]))
    with pytest.raises(ValueError, match="neither train nor test"):
        list(lab_conversations("math", 1, split="dev"))
    with pytest.raises(ValueError, match="ask for fewer"):
        list(lab_conversations("general", 10**5, exclude=["repeat", "order", "list", "memory", "arithmetic", "python"]))


def test_tokenizer_round_trips_with_single_digits_and_bos():
    tokenizer = lab_tokenizer()
    text = "Kate has 127 leaves.\n  def f(x): # été 😀"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == text
    assert {"1", "2", "7"} <= set(tokenizer.convert_ids_to_tokens(ids))
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) <= 1024


# the interpreter

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
    inputs = {"value": [-3, 0, 8, 99], "choice": [-3, 0, 8, 99], "list": [[], [4], [9, -2, 30]]}
    told = list(lab_conversations("code", 300, split="test"))
    for problem, conversation in zip(lab_problems("code", 300), told, strict=True):
        source = conversation.turns[-1].text
        scope: dict = {}
        exec(source, scope)  # our own text, written by the generator above
        name = re.match(r"def (\w+)\(", source)[1]
        assert f" {name} " in problem.prompts[0]
        assert all(run_function(source, [value]) == scope[name](value) for value in inputs[problem.kind])
        assert all(run_function(source, [value]) == scope[name](value) == wanted for value, wanted in problem.reference)


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
