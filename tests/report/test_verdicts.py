"""Files of verdicts: compared problem by problem, pooled over seeds, and refused where they do not match."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sftlab.commands.compare import comparison_notes, comparison_table
from sftlab.commands.compare import main as compare_command
from sftlab.report import verdicts
from sftlab.report.verdicts import compare_over_seeds, read_verdicts, that_counts
from sftlab.stats.paired import Comparison, mcnemar


def compare(a: Path, b: Path) -> list[Comparison]:
    return verdicts.compare(read_verdicts(a), read_verdicts(b))


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
    # 15.24 to 17.68 of 164 problems; even if b kept all that a solved but one, four more are not evidence.
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
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(found, {"t": "x@1"}, {"t": None}))
    text, notes = console.export_text(), comparison_notes(found, {"t": "x@1"})
    assert "inside noise" in text and "not compared" in text and "only in" in notes[-1]
    assert "The score of t is by x@1; the lines below it read the same answers by other rules." in notes
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
        (good.read_text()[:-9], "line 1: not JSON"),
        (good.read_text() * 2, "line 2: a second verdict on 0, sample 0, by x@1"),
        ('{"uid": "0"}\n', "line 1: not a verdict: task is missing"),
        ("[1]\n", "line 1: not a verdict"),
        ("", "has no verdicts"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match=message):
            compare(good, tmp_path / "bad")


def _values(path: Path, values: list[float], prompts: str = "same") -> Path:
    rows = [
        {"task": "t", "uid": str(i), "extractor": "x@1", "sample": 0, "value": v, "prompts": [prompts]}
        for i, v in enumerate(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_seeds_are_pooled_problem_by_problem(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    values = generator.integers(0, 2, size=(2, 3, 50)).astype(float)
    files = [[_values(tmp_path / f"{s}{i}", values[s, i].tolist()) for i in range(3)] for s in (0, 1)]
    pooled = compare_over_seeds(files[0], files[1], "accuracy/x@1")
    by_hand = compare(
        _values(tmp_path / "a", values[0].mean(0).tolist()), _values(tmp_path / "b", values[1].mean(0).tolist())
    )
    assert (pooled.num_problems, pooled.difference, pooled.p_value) == pytest.approx(
        (50, by_hand[0].difference, by_hand[0].p_value)
    )
    apart = [[_values(path, values[s, i].tolist(), f"seed {i}") for i, path in enumerate(files[s])] for s in (0, 1)]
    pooled = compare_over_seeds(apart[0], apart[1], "accuracy/x@1")
    flat = values.reshape(2, -1)
    counts = [int((flat[a] > flat[1 - a]).sum()) for a in (0, 1)]
    assert pooled.num_problems == 150 and pooled.p_value == pytest.approx(mcnemar(*counts))


def test_the_rule_that_counts_is_that_of_the_score_and_of_ratings_the_one_of_all_turns() -> None:
    rules = ["flexible@1", "strict@1", "1/flexible@1"]
    assert that_counts(rules, "accuracy/strict@1") == "strict@1"
    assert that_counts(rules, "mean/1/flexible@1") == "1/flexible@1" and that_counts(rules) == "flexible@1"
    assert that_counts(["gpt/x/turn1", "gpt/x/turn2", "gpt/x/overall"], "rating") == "gpt/x/overall"


def test_compare_names_the_rule_that_counts_by_the_scores_beside_the_verdicts(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        path = _file(tmp_path / model / "t.problems.jsonl", {str(i): [float(i % 2)] for i in range(9)})
        path.write_text(path.read_text() + path.read_text().replace("x@1", "y@1"))
        row = {"task": "t", "metric": "accuracy/y@1", "value": 0.4, "headline": True}
        (tmp_path / model / "scores.jsonl").write_text(json.dumps(row) + "\n")
    assert compare_command([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out.splitlines()
    first, second = (line for line in shown if "inside noise" in line)
    assert "44.4%" in first and "+0.0 pts" in first  # as fit shows scores
    assert first.startswith("t, y@1") and second.startswith("  x@1") and "The score of t is by y@1" in "".join(shown)
