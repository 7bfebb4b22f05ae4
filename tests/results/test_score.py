"""Lines of results files: what is written is read back, what is malformed is refused with its place."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.results.score import ScoreRow, mean_score
from sftlab.results.verdict import Verdict, VerdictRow

numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
texts = st.one_of(st.none(), st.text())


@given(
    st.text(), st.text(), numbers, numbers, st.integers(0), st.booleans(), texts, st.one_of(st.none(), st.integers(0))
)
def test_a_row_of_scores_is_read_as_it_was_written(
    task: str, metric: str, value: Any, low: Any, count: int, flag: bool, text: Any, step: Any
) -> None:
    row = ScoreRow(
        task=task, metric=metric, value=value, low=low, num_problems=count, headline=flag, stage=text, step=step
    )
    assert ScoreRow.from_dict(json.loads(json.dumps(row.to_dict())), "x") == row


def test_what_was_not_measured_is_null_in_json_and_nan_in_numbers() -> None:
    row = ScoreRow.of(mean_score("t", "m", [], num_missing=4), headline=True, best=1.0, checkpoint="c")
    text = json.dumps(row.to_dict(), allow_nan=False)
    back = ScoreRow.from_dict(json.loads(text), "x")
    assert back.value is None and back.num_missing == 4 and math.isnan(back.score().value)
    assert ScoreRow.from_dict({"task": "t", "metric": "m", "value": math.nan}, "x").value is None


@given(st.text(), st.integers(0), texts, numbers, st.lists(st.text()))
def test_a_verdict_is_read_as_it_was_written(uid: str, sample: int, found: Any, value: Any, prompts: list[str]) -> None:
    row = VerdictRow.of("t", Verdict(uid, sample, "x@1", found, value), tuple(prompts), ("said",))
    assert VerdictRow.from_dict(json.loads(json.dumps(row.to_dict())), "x") == row


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "high"}, "f, line 3: value is 'high', not float"),
        ({"value": 10**400}, "f, line 3: value is 1000"),
        ({"step": True}, "f, line 3: step is True, not int"),
        ({"num_problems": 1.5}, "num_problems is 1.5, not int"),
        ({"inside": 0}, "inside is 0, not bool"),
        ({"task": None}, "task is None, not str"),
        ({"task": ...}, "task is missing"),
    ],
)
def test_malformed_rows_are_refused_with_their_place(change: dict[str, Any], said: str) -> None:
    row: dict[str, Any] = {"task": "t", "metric": "m", "value": 1.0, **change}
    with pytest.raises(ValueError, match=said):
        ScoreRow.from_dict({key: value for key, value in row.items() if value is not ...}, "f, line 3")
    for other in ([], "x", None, 3):
        with pytest.raises(ValueError, match="f, line 3: not an object"):
            ScoreRow.from_dict(other, "f, line 3")
