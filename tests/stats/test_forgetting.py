"""Forgetting: the definitions against hand-made matrices, independent loops and the paper's own table."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.stats.forgetting import (
    BEFORE,
    ScoreMatrix,
    average,
    backward_transfer,
    forgetting,
    forward_transfer,
    gain,
    mean_over_abilities,
    retention,
    specialist_gap,
    table_rows,
)

ABILITIES = ("math", "code", "general")
# arXiv 2310.05492, Table 1, 7B: GSM8K %, HumanEval %, MT-Bench. Specialist: each ability's own single-source row.
SPECIALISTS = {"math": 0.4910, "code": 0.1840, "general": 5.88}
FINALS = {
    "sequential": ((0.3139, 0.1585, 5.72), (-0.1771, -0.0255, -0.16)),
    "mixed sequential": ((0.3260, 0.1524, 6.02), (-0.1650, -0.0316, 0.14)),
    "multi-task": ((0.4753, 0.1463, 5.76), (-0.0157, -0.0377, -0.12)),
    "DMT": ((0.4192, 0.1768, 6.08), (-0.0718, -0.0072, 0.20)),
}


def _matrix(scores: list[list[float]], full: list[tuple[str, ...]], **options: object) -> ScoreMatrix:
    names = tuple(f"stage {i}" for i in range(len(scores)))
    return ScoreMatrix(names, ABILITIES[: len(scores[0])], tuple(full), np.array(scores), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", FINALS)
def test_the_paper_s_gaps_to_the_specialists(strategy: str) -> None:
    finals, gaps = FINALS[strategy]
    matrix = _matrix([list(finals)], [ABILITIES], best={"general": 10})
    assert list(specialist_gap(matrix, SPECIALISTS).values()) == pytest.approx(gaps, abs=1e-9)
    kept = retention(matrix, SPECIALISTS)
    assert kept["math"] == pytest.approx(finals[0] / 0.4910)
    assert average(matrix) == pytest.approx((finals[0] + finals[1] + finals[2] / 10) / 3)


def test_two_stages_with_replay_anchor_at_the_stage_of_full_training() -> None:
    matrix = _matrix([[0.9, 0.8, 0.1], [0.6, 0.75, 0.7]], [("math", "code"), ("general",)])
    assert [matrix.anchor(ability) for ability in ABILITIES] == [0, 0, 1]
    assert backward_transfer(matrix) == pytest.approx({"math": -0.3, "code": -0.05, "general": None})
    assert forgetting(matrix) == pytest.approx({"math": 0.3, "code": 0.05, "general": None})
    assert mean_over_abilities(matrix, forgetting(matrix)) == pytest.approx(0.175)
    # Full replay moves the anchor: nothing came after it.
    again = _matrix([[0.9, 0.8, 0.1], [0.6, 0.75, 0.7]], [("math", "code"), ABILITIES])
    assert set(backward_transfer(again).values()) == {None}
    assert math.isnan(mean_over_abilities(again, forgetting(again)))


def test_forgetting_is_from_the_best_stage_backward_transfer_from_its_own() -> None:
    matrix = _matrix([[0.5, 0.2], [0.8, 0.6], [0.7, 0.5]], [("math",), ("code",), ()])
    assert backward_transfer(matrix) == pytest.approx({"math": 0.2, "code": -0.1})
    assert forgetting(matrix) == pytest.approx({"math": 0.1, "code": 0.1})
    better = _matrix([[0.5], [0.8]], [("math",), ()])
    assert forgetting(better)["math"] == pytest.approx(-0.3)


def test_an_ability_that_no_stage_trains_can_be_forgotten() -> None:
    matrix = _matrix([[0.5, 0.6], [0.9, 0.2]], [(), ("math",)])
    assert forgetting(matrix) == pytest.approx({"math": None, "code": 0.4})
    assert backward_transfer(matrix) == {"math": None, "code": None}


def test_forward_transfer_and_gain_are_against_the_model_before_training() -> None:
    full = {BEFORE: (), "specialised": ("math", "code"), "general": ("general",)}
    scores = [[0.05, 0.1, 0.02], [0.9, 0.8, 0.1], [0.6, 0.75, 0.7]]
    rows = [
        {"stage": stage, "ability": ability, "value": value}
        for stage, values in zip(full, scores, strict=True)
        for ability, value in zip(ABILITIES, values, strict=True)
    ]
    matrix = ScoreMatrix.from_rows(rows, full)
    assert forward_transfer(matrix) == pytest.approx({"math": None, "code": None, "general": 0.08})
    assert gain(matrix) == pytest.approx({"math": 0.55, "code": 0.65, "general": 0.68})
    assert forgetting(matrix) == pytest.approx({"math": 0.3, "code": 0.05, "general": None})
    titles = [row[0] for row in table_rows(matrix)]
    assert titles[1] == BEFORE and titles[-2:] == ["forward transfer", "gain over the base"]
    unmeasured = _matrix(scores, list(full.values()))
    assert set(gain(unmeasured).values()) == set(forward_transfer(unmeasured).values()) == {None}


def test_forward_transfer_follows_lopez_paz_and_ranzato_where_stages_train_one_ability_each() -> None:
    full = [(), ("math",), ("code",), ("general",)]
    scores = np.array([[0.1, 0.2, 0.3], [0.9, 0.25, 0.2], [0.7, 0.8, 0.45], [0.6, 0.7, 0.9]])
    matrix = ScoreMatrix((BEFORE, "a", "b", "c"), ABILITIES, tuple(full), scores)
    # Their FWT: the mean over tasks i = 2 .. T of R[i-1, i] - b[i].
    wanted = sum(scores[i, i] - scores[0, i] for i in (1, 2)) / 2
    assert mean_over_abilities(matrix, forward_transfer(matrix)) == pytest.approx(wanted)


def test_one_stage_has_nothing_to_forget() -> None:
    matrix = _matrix([[0.5, 0.6]], [("math",)])
    assert set(forgetting(matrix).values()) == set(backward_transfer(matrix).values()) == {None}


def test_what_was_not_measured_is_nowhere_hidden() -> None:
    matrix = _matrix([[math.nan, 0.6], [0.9, 0.2], [0.8, 0.1]], [("math",), ("code",), ()])
    values = backward_transfer(matrix)
    assert math.isnan(values["math"] or 0) and values["code"] == pytest.approx(-0.1)
    assert math.isnan(forgetting(matrix)["math"] or 0)
    assert math.isnan(mean_over_abilities(matrix, values))
    assert "not measured*" in table_rows(matrix)[1]
    assert math.isnan(retention(_matrix([[0.5]], [("math",)]), {"math": 0.0})["math"] or 0)


@st.composite
def sequences(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(2, 5))
    score = st.floats(0, 1, width=32)
    return np.array(draw(st.lists(st.lists(score, min_size=size, max_size=size), min_size=size, max_size=size)))


@given(sequences())
def test_one_task_a_stage_gives_the_published_definitions(scores: np.ndarray) -> None:
    size = len(scores)
    names = tuple(f"task {j}" for j in range(size))
    matrix = ScoreMatrix(names, names, tuple((name,) for name in names), scores)
    bwt = sum(scores[size - 1][j] - scores[j][j] for j in range(size - 1)) / (size - 1)
    lost = sum(max(scores[i][j] for i in range(size - 1)) - scores[size - 1][j] for j in range(size - 1)) / (size - 1)
    assert mean_over_abilities(matrix, backward_transfer(matrix)) == pytest.approx(bwt, abs=1e-9)
    assert mean_over_abilities(matrix, forgetting(matrix)) == pytest.approx(lost, abs=1e-9)
    assert average(matrix) == pytest.approx(sum(scores[size - 1]) / size)
    for ability, value in forgetting(matrix).items():
        assert value is None or value >= -(backward_transfer(matrix)[ability] or 0) - 1e-12


def test_from_rows_and_the_printed_table() -> None:
    values = {"specialised": (0.9, 0.8, 3.0), "general": (0.6, 0.75, 7.0)}
    rows = [
        {"stage": stage, "ability": ability, "value": value, "task": "x"}
        for stage, mine in values.items()
        for ability, value in zip(ABILITIES, mine, strict=True)
    ]
    full = {"specialised": ("math", "code"), "general": ("general",)}
    matrix = ScoreMatrix.from_rows(rows, full, best={"general": 10})
    assert table_rows(matrix, {"math": 0.8, "code": 0.75}) == [
        ["after stage", "math", "code", "general", "mean"],
        ["specialised", "90.0%*", "80.0%*", "3.00", "66.7%"],
        ["general", "60.0%", "75.0%", "7.00*", "68.3%"],
        ["backward transfer", "-30.0 pts", "-5.0 pts", "-", "-17.5 pts"],
        ["forgetting", "+30.0 pts", "+5.0 pts", "-", "+17.5 pts"],
        ["against the specialist", "-20.0 pts", "+0.0 pts", "-", "-10.0 pts"],
        ["retention", "75.0%", "100.0%", "-", "87.5%"],
    ]
    with pytest.raises(ValueError, match="two scores of math after stage 'general'"):
        ScoreMatrix.from_rows([*rows, rows[3]], full, best={"general": 10})
    with pytest.raises(ValueError, match="after stage 'general'; the stages are specialised"):
        ScoreMatrix.from_rows(rows, {"specialised": ("math",)})


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"general: a score of 5.88 is above the best possible, 1; give its scale"):
        _matrix([[0.1, 0.2, 5.88]], [ABILITIES])
    with pytest.raises(ValueError, match="do not fit"):
        _matrix([[0.1], [0.2]], [("math",)])
