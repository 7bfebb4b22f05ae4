"""HumanEval+ and MBPP+: files in the hub's form are asked as HumanEval and MBPP are and graded by the added tests."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.tasks.evalplus import HumanEvalPlus, MBPPPlus
from sftlab.tasks.humaneval import MBPP
from sftlab.tasks.plain_numpy import allclose, assert_allclose
from sftlab.tasks.registry import build_task
from sftlab.tasks.task import Answer

# The form of the hub's test.jsonl: what is compared by numpy, then every input with its result.
COMPARES = """import numpy as np


def is_floats(x):
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(one, float) for one in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

"""
HALF = {
    "task_id": "HumanEval/0", "prompt": "def half(x: float) -> float:\n    \"\"\" Half of x. \"\"\"\n",
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": COMPARES + "def check(candidate):\n    inputs = [[1.0], [3.0], [-5.0]]\n"
    "    results = [0.5, 1.5000000001, -2.5]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
}  # fmt: skip
SHARED = {
    "task_id": "2", "code": "def shared(a, b):\n    return tuple(set(a) & set(b))\n", "prompt": "Find what is shared.",
    "test_imports": "['import math']", "test_list": ["assert set(shared((1, 2), (2, 3))) == set((2,))"],
    "test": COMPARES + "inputs = [[(1, 2), (2, 3)], [(), ()]]\nresults = [(2,), ()]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(set(shared(*inp)), set(exp), 0)\n",
}  # fmt: skip


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_program_passes_by_the_added_tests_and_fails_by_them(tmp_path, sandbox):
    task = HumanEvalPlus(written(tmp_path / "h.jsonl", HALF), num_samples=3, temperature=0.5)
    [problem] = task.problems()
    texts = ("    return x / 2\n", "    return x // 2 if x < 0 else x / 2\n", "    import numpy\n    return x / 2\n")
    verdicts = task.grade([problem], [Answer("HumanEval/0", i, (text,)) for i, text in enumerate(texts)])
    assert [verdict.value for verdict in verdicts] == [1.0, 0.0, 0.0], [verdict.reason for verdict in verdicts]
    assert "numpy" in verdicts[2].reason, "answers have the standard library alone"


def test_an_mbpp_answer_that_passes_what_it_was_shown_can_still_fail(tmp_path, sandbox):
    task = MBPPPlus(written(tmp_path / "m.jsonl", SHARED))
    [problem] = task.problems()
    assert SHARED["test_list"][0] in problem.prompts[0] and "()" not in problem.prompts[0].split("```")[2]
    lazy = SHARED["code"].replace("    return", "    if not a:\n        return (0,)\n    return")
    verdicts = task.grade([problem, problem], [Answer("MBPP/2", i, (t,)) for i, t in enumerate((SHARED["code"], lazy))])
    assert [verdict.value for verdict in verdicts] == [1.0, 0.0], [verdict.reason for verdict in verdicts]
    plain = MBPP(written(tmp_path / "plain.jsonl", SHARED), first=1)
    [asked] = plain.problems()
    assert plain.grade([asked], [Answer("MBPP/2", 0, (lazy,))])[0].value == 1.0


@pytest.mark.parametrize(("name", "hub"), [("humaneval_plus", "humanevalplus"), ("mbpp_plus", "mbppplus")])
def test_the_form_that_has_inputs_alone_is_told_from_the_one_that_is_read(name, hub, tmp_path, sandbox):
    row = {"task_id": "Mbpp/2", "prompt": "p", "entry_point": "f", "canonical_solution": "", "base_input": [],
           "plus_input": []}  # fmt: skip
    task = build_task(name, {"path": written(tmp_path / "x.jsonl", row)})
    with pytest.raises(ValueError, match=f"line 1: no .*plus_input.*test.jsonl of the hub's data set evalplus/{hub}"):
        task.problems()


def test_a_file_of_another_format_is_named(tmp_path, sandbox):
    (tmp_path / "x.parquet").write_bytes(b"PAR1\xff\xfe")
    (tmp_path / "x.jsonl.gz").write_bytes(b"PAR1\xff\xfe")
    for name in ("x.parquet", "x.jsonl.gz"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as JSON lines"):
            HumanEvalPlus(str(tmp_path / name)).problems()


NUMBERS = st.floats() | st.integers(-(10**6), 10**6) | st.booleans()


@given(st.lists(st.tuples(NUMBERS, NUMBERS | st.just(0.0), st.floats(-1e-6, 1e-6)), max_size=5))
def test_close_is_what_numpy_calls_close(pairs):
    a, b = [pair[0] for pair in pairs], [pair[0] + pair[2] if pair[1] else pair[1] for pair in pairs]
    with np.errstate(all="ignore"):
        assert allclose(a, b, rtol=1e-07, atol=1e-06) == np.allclose(a, b, rtol=1e-07, atol=1e-06)
        assert allclose([a, a], [b, b]) == np.allclose([a, a], [b, b])


def test_what_numpy_refuses_is_no_match():
    for wrong in ("text", None, {"a": 1}):
        with pytest.raises(TypeError):
            allclose(wrong, 1.0)
    with pytest.raises(ValueError, match="2 items and 3"):
        allclose([1, 2], (1, 2, 3))
    assert_allclose([math.nan, 1.0], [math.nan, 1.0 + 1e-9])
    with pytest.raises(AssertionError, match="not close"):
        assert_allclose(1.0, 1.1)
