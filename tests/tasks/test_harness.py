"""The adapter to the evaluation harness, against a stand-in for it."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sftlab.tasks.harness import LMEval
from sftlab.tasks.registry import build_task


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        calls.append(options)
        if options["tasks"] != ["arc_easy"]:
            raise KeyError(options["tasks"][0])
        metrics = {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25}
        return {"results": {"arc_easy": metrics}, "n-samples": {"arc_easy": {"original": 99, "effective": 20}}}

    harness, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    models.HFLM = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", models)
    return calls


MODEL = SimpleNamespace(model="weights", encoder=SimpleNamespace(tokenizer="words"))


def test_a_task_of_the_harness_gives_its_metrics(asked: list[dict[str, Any]]) -> None:
    task = build_task("lm_eval", {"task": "arc_easy", "num_problems": "20", "num_fewshot": "5"})
    assert task.name == "lm_eval_arc_easy" and task.problems() == []
    acc, norm = task.measure(MODEL)  # type: ignore[attr-defined]
    assert (acc.metric, acc.value, acc.num_problems, acc.standard_error) == ("acc", 0.5, 20, 0.1)
    assert acc.low == pytest.approx(0.304, abs=1e-3) and (norm.metric, norm.value) == ("acc_norm", 0.25)
    assert (asked[0]["limit"], asked[0]["num_fewshot"], asked[0]["apply_chat_template"]) == (20, 5, True)
    assert asked[0]["model"]["pretrained"] == "weights"


def test_what_is_missing_is_told(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the harness knows no task 'arc_eas'"):
        LMEval("arc_eas").measure(MODEL)
    with pytest.raises(ValueError, match="needs the model itself, not a server"):
        LMEval("arc_easy").measure(SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match="pip install lm-eval"):
        LMEval("arc_easy").problems()
    with pytest.raises(ValueError, match=r"num_problems: 0"):
        LMEval("arc_easy", num_problems=0)
