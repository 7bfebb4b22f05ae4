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
        if options["tasks"] == ["ifeval"]:
            raise AssertionError("max tokens (1280) must be less than 1024")
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


TEMPLATE = SimpleNamespace(chat_template=lambda: "{{ messages }}", end_of_turn="<|im_end|>")
TOKENIZER = SimpleNamespace(chat_template="the base's", eos_token="</s>")
MODEL = SimpleNamespace(model="weights", encoder=SimpleNamespace(tokenizer=TOKENIZER, template=TEMPLATE))


def test_a_task_of_the_harness_gives_its_metrics(asked: list[dict[str, Any]]) -> None:
    task = build_task("lm_eval", {"task": "arc_easy", "num_problems": "20", "num_fewshot": "5"})
    assert task.name == "lm_eval_arc_easy" and task.problems() == []
    acc, norm = task.measure(MODEL)  # type: ignore[attr-defined]
    assert (acc.metric, acc.value, acc.num_problems, acc.standard_error) == ("acc", 0.5, 20, 0.1)
    assert acc.low == pytest.approx(0.304, abs=1e-3) and (norm.metric, norm.value) == ("acc_norm", 0.25)
    assert (asked[0]["limit"], asked[0]["num_fewshot"], asked[0]["apply_chat_template"]) == (20, 5, True)
    assert asked[0]["model"]["pretrained"] == "weights"


def test_it_asks_by_the_template_that_was_trained_and_leaves_the_tokenizer_as_it_was(
    asked: list[dict[str, Any]],
) -> None:
    for chat, wanted in ((True, ("{{ messages }}", "<|im_end|>")), (False, ("the base's", "</s>"))):
        LMEval("arc_easy", chat=chat).measure(MODEL)
        given = asked[-1]["model"]["tokenizer"]
        assert (given.chat_template, given.eos_token) == wanted
        given.eos_token = "the harness's"
    assert (TOKENIZER.chat_template, TOKENIZER.eos_token) == ("the base's", "</s>")


def test_a_revision_reaches_the_data_sets_of_the_harness_alone(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    datasets = ModuleType("datasets")
    datasets.load_dataset = load = lambda *args, **options: loaded.append((args, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    harness, evaluate = sys.modules["lm_eval"], sys.modules["lm_eval"].simple_evaluate

    def simple_evaluate(**options: Any) -> Any:
        sys.modules["datasets"].load_dataset("cais/mmlu", name="law")
        return evaluate(**options)

    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    LMEval("arc_easy", revision="1a2b3c").measure(MODEL)
    LMEval("arc_easy").measure(MODEL)
    assert loaded == [(("cais/mmlu",), {"revision": "1a2b3c", "name": "law"}), (("cais/mmlu",), {"name": "law"})]
    assert datasets.load_dataset is load  # type: ignore[attr-defined]
    assert LMEval("arc_easy", revision="x").grading() != LMEval("arc_easy").grading()


def test_what_is_missing_is_told(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the harness knows no task 'arc_eas'"):
        LMEval("arc_eas").measure(MODEL)
    with pytest.raises(ValueError, match=r"ended with AssertionError: max tokens \(1280\) must be less than 1024"):
        LMEval("ifeval").measure(MODEL)
    with pytest.raises(ValueError, match="needs the model itself, not a server"):
        LMEval("arc_easy").measure(SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'sftlab\[lm-eval\]'"):
        LMEval("arc_easy").problems()
    with pytest.raises(ValueError, match=r"num_problems: 0"):
        LMEval("arc_easy", num_problems=0)
