"""Paired comparison: tests against counting by hand, coverage of the intervals, and files that do not match."""

import io
import itertools
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sftlab.stats.paired import compare, comparison_table, mcnemar, paired_bootstrap, paired_interval


def _file(path: Path, values: dict[str, list[float | None]], **extra: Any) -> Path:
    rows = [
        {"task": "t", "uid": uid, "sample": i, "extractor": "x@1", "value": value, "prompts": [uid], **extra}
        for uid, samples in values.items()
        for i, value in enumerate(samples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _binary(path: Path, values: list[int]) -> Path:
    return _file(path, {str(i): [float(value)] for i, value in enumerate(values)})


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_counts_all_coin_tosses(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    as_far = sum(
        abs(2 * sum(tosses) - n) >= abs(only_b - only_a) for tosses in itertools.product((0, 1), repeat=min(n, 12))
    )
    if n <= 12:
        assert mcnemar(only_a, only_b) == pytest.approx(float(Fraction(as_far, 2**n)))
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) <= 1


def test_a_textbook_case() -> None:
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(0, 0) == 1
    low, high = paired_interval(12, 2, 50)  # p10 = 13/52, p01 = 3/52
    half = 1.959964 * math.sqrt((16 / 52 - (10 / 52) ** 2) / 52)
    assert (low, high) == pytest.approx((-10 / 52 - half, -10 / 52 + half))


@pytest.mark.parametrize(("share_a", "share_b", "n"), [(0.1, 0.1, 40), (0.05, 0.15, 164), (0.02, 0.02, 164)])
def test_the_interval_holds_its_level(share_a: float, share_b: float, n: int) -> None:
    draws = np.random.default_rng(1).multinomial(n, [share_a, share_b, 1 - share_a - share_b], size=4000)
    ends = [paired_interval(int(a), int(b), n) for a, b, _ in draws]
    assert np.mean([low <= share_b - share_a <= high for low, high in ends]) > 0.94


def test_the_bootstrap_holds_its_level() -> None:
    generator = np.random.default_rng(2)
    inside = significant = 0
    for _ in range(100):
        low, high, p = paired_bootstrap(generator.choice([-2.0, -0.5, 0.0, 0.5, 2.0], size=80) + 0.0)
        inside += low <= 0 <= high
        significant += p < 0.05
    assert inside >= 88 and significant <= 12


def test_the_bootstrap_against_the_normal_approximation() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1.0, size=400)
    error = differences.std(ddof=1) / 20
    low, high, p = paired_bootstrap(differences)
    assert (low, high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.1 * error
    )
    assert p == pytest.approx(math.erfc(abs(differences.mean()) / error / math.sqrt(2)), abs=0.002)
    assert paired_bootstrap(differences) == (low, high, p)
    assert paired_bootstrap(np.array([5.0])) == (-math.inf, math.inf, 1.0)
    assert paired_bootstrap(np.zeros(10)) == (0.0, 0.0, 1.0)


def test_right_and_wrong_problems(tmp_path: Path) -> None:
    a, b = [1] * 60 + [0] * 40, [1] * 50 + [0] * 10 + [1] * 30 + [0] * 10
    (found,) = compare(_binary(tmp_path / "a", a), _binary(tmp_path / "b", b))
    assert (found.num_problems, found.num_missing) == (100, 0)
    assert (found.mean_a, found.mean_b) == (0.6, 0.8) and found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(mcnemar(10, 30)) and found.low > 0
    assert found.method == "McNemar exact: 10 only a, 30 only b"
    assert (found.words, found.inside_noise) == ("b is better", False)
    (reverse,) = compare(tmp_path / "b", tmp_path / "a")
    assert (reverse.words, reverse.low, reverse.high) == ("b is worse", -found.high, -found.low)


def test_the_paper_s_gain_on_humaneval_is_inside_noise(tmp_path: Path) -> None:
    # 15.24 to 17.68 of 164 problems; even if b kept all that a solved but one, four more are no evidence.
    a, b = [1] * 25 + [0] * 139, [0] + [1] * 29 + [0] * 134
    (found,) = compare(_binary(tmp_path / "a", a), _binary(tmp_path / "b", b))
    assert found.words == "inside noise" and found.low < 0 < found.high
    (same,) = compare(tmp_path / "a", tmp_path / "a")
    assert (same.words, same.difference, same.p_value) == ("inside noise", 0.0, 1.0)


def test_ratings_samples_and_missing_verdicts(tmp_path: Path) -> None:
    a = {str(i): [float(5 + i % 3), 5.0] for i in range(80)}
    b = {uid: [values[0] + 1] for uid, values in a.items()}
    a["7"], b["9"] = [None, 5.0], [None]
    (found,) = compare(_file(tmp_path / "a", a), _file(tmp_path / "b", b))
    assert (found.num_problems, found.num_missing) == (78, 2)
    assert found.method.startswith("paired bootstrap") and found.words == "b is better"
    (none,) = compare(_file(tmp_path / "a", {"0": [None]}), _file(tmp_path / "b", {"0": [1.0]}))
    assert none.words == "not compared" and none.num_missing == 1


def test_different_problems_are_refused_and_named(tmp_path: Path) -> None:
    _file(tmp_path / "a", {str(i): [1.0] for i in range(10)})
    _file(tmp_path / "b", {str(i): [1.0] for i in range(8, 11)})
    with pytest.raises(ValueError, match=r"a lacks 1 of them \(10\) and .*b lacks 8 of them \(0, 1, 2, 3, 4, \.\.\.\)"):
        compare(tmp_path / "a", tmp_path / "b")
    _file(tmp_path / "b", {str(i): [1.0] for i in range(10)}, prompts=["else"])
    with pytest.raises(ValueError, match="t: problem 0 does not ask the same"):
        compare(tmp_path / "a", tmp_path / "b")


def test_extractors_of_one_file_alone_are_listed(tmp_path: Path) -> None:
    _file(tmp_path / "a", {"0": [1.0], "1": [0.0]})
    both = (tmp_path / "a").read_text()
    (tmp_path / "b").write_text(both + both.replace("x@1", "y@1"))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(c.extractor, c.words) for c in found] == [("x@1", "inside noise"), ("y@1", "not compared")]
    assert found[1].method == f"only in {tmp_path / 'b'}"
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    text = console.export_text()
    assert "inside noise" in text and "not compared" in text and "only in" in text
    (tmp_path / "b").write_text(both.replace("x@1", "y@1"))
    with pytest.raises(ValueError, match=r"nothing to compare: .*a has t by x@1, .*b has t by y@1"):
        compare(tmp_path / "a", tmp_path / "b")


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    good = _file(tmp_path / "t.problems.jsonl", {"0": [1.0]})
    with pytest.raises(
        ValueError, match=r"no such file; give a <task>.problems.jsonl of an evaluation; in it are t.prob"
    ):
        compare(tmp_path, good)
    for text, message in (
        (good.read_text()[:-9], "line 1: not a verdict"),
        (good.read_text() * 2, "line 2: a second verdict on 0, sample 0, by x@1"),
        ('{"uid": "0"}\n', r"line 1: not a verdict \(KeyError: 'task'\)"),
        ("[1]\n", "line 1: not a verdict"),
        ("", "has no verdicts"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match=message):
            compare(good, tmp_path / "bad")


def test_imports_stay_light() -> None:
    modules = "stats.paired stats.forgetting tasks.gsm8k tasks.mtbench endpoint.client endpoint.replies".split()
    heavy = "[name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]"
    code = f"import sys, {', '.join(f'sftlab.{module}' for module in modules)}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
