"""MT-Bench against a judge that misbehaves: it finishes, pays once and tells what is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_stub import SECRET, Stub
from hypothesis import given
from hypothesis import strategies as st

from sftlab.tasks import mtbench
from sftlab.tasks.judge_prompts import FIELDS, JudgePrompts, read_rating
from sftlab.tasks.mtbench import GUIDED, TEMPERATURES, MTBench
from sftlab.tasks.task import Answer, Problem, Score


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _questions(folder: Path) -> dict[str, str]:
    """Two questions of each category, and references."""
    categories = [category for category in TEMPERATURES for _ in range(2)]
    rows = [{"question_id": i, "category": c, "turns": [f"ask {i}", "more"]} for i, c in enumerate(categories)]
    guided = [row for row in rows if row["category"] in GUIDED]
    references = [{"question_id": r["question_id"], "choices": [{"turns": ["gold 1", "gold 2"]}]} for r in guided]
    path, gold = _write(folder / "question.jsonl", rows), _write(folder / "reference.jsonl", references)
    return {"path": path, "references": gold}


def _task(folder: Path, stub: Stub, **options: Any) -> MTBench:
    files = _questions(folder)
    cache = str(folder / "judgements.jsonl")
    return MTBench(**{**files, "judge_url": stub.url, "judge_model": "stub", "judge_cache": cache, **options})


def _answers(problems: list[Problem]) -> list[Answer]:
    return [Answer(p.uid, 0, tuple(f"answer {p.uid}.{t}" for t in range(2)), (True, True)) for p in problems]


def _run(task: MTBench) -> dict[str, Score]:
    problems = task.problems()
    return {score.metric: score for score in task.scores(task.grade(problems, _answers(problems)))}


def _cached(folder: Path) -> list[str]:
    rows = []
    for line in (folder / "judgements.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line)["key"])
        except ValueError:
            continue
    return rows


def test_scores_by_turn_and_category(stub: Stub, tmp_path: Path) -> None:
    scores = _run(_task(tmp_path, stub))
    assert next(iter(scores)) == "rating"
    assert {metric: s.num_problems for metric, s in scores.items()} == {
        "rating": 16, "rating/turn1": 16, "rating/turn2": 16, **{f"rating/{c}": 2 for c in TEMPERATURES},
        "judgements_missing": 32,
    }  # fmt: skip
    assert {s.value for m, s in scores.items() if m != "judgements_missing"} == {7.0}
    assert scores["judgements_missing"].value == 0
    assert stub.paid == 16 * 2 * 3 == len(set(_cached(tmp_path)))
    # One text for each answer and turn, each asked three times, at temperature 0, references only where they belong.
    bodies = Counter(json.dumps(body["messages"]) for body in stub.requests)
    assert set(bodies.values()) == {3} and len(bodies) == 32
    assert sum("gold 1" in text for text in bodies) == 12 and sum("gold 2" in text for text in bodies) == 6
    assert {(b["temperature"], b["max_tokens"], b["model"]) for b in stub.requests} == {(0.0, 2048, "stub")}


def test_answers_are_asked_as_the_public_harness_does(stub: Stub, tmp_path: Path) -> None:
    task = _task(tmp_path, stub)
    assert {p.category: p.temperature for p in task.problems()} == {
        "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
        "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
    }  # fmt: skip
    assert (task.sampling.max_new_tokens, task.sampling.num_samples) == (1024, 1)


def test_a_misbehaving_judge(stub: Stub, tmp_path: Path) -> None:
    bad = ["busy", "broken", "cut", "no_rating", "eleven", "hang_up", "error_in_200", "flagged", "good", "good", "good"]
    stub.script = lambda i: "slow" if i % 41 == 7 else "drip" if i % 41 == 30 else bad[i % len(bad)]
    stub.slow_s = 4.0
    task = _task(tmp_path, stub, timeout_s=2.0)  # far from what a good answer takes on a busy machine
    problems = task.problems()
    verdicts = task.grade(problems, _answers(problems))
    assert len(verdicts) == 16 * 3
    # Whatever was sent whole was paid for, and is kept.
    assert len(_cached(tmp_path)) == len(set(_cached(tmp_path))) == stub.paid
    rated = sum(len(v.extracted.split(", ")) for v in verdicts if v.extracted and "turn" in v.extractor)
    missing = {score.metric: score for score in task.scores(verdicts)}["judgements_missing"]
    assert missing.value == pytest.approx(1 - rated / (16 * 2 * 3))
    assert all(v.value in (7.0, None) for v in verdicts)
    for verdict in verdicts:
        if "turn" in verdict.extractor and len((verdict.extracted or "").split()) < 3:
            assert "judgements missing: " in verdict.reason


def test_unratable_answers_are_missing_and_told(stub: Stub, tmp_path: Path) -> None:
    # The first question's second turn never gets a rating, its first turn one of three.
    def decide(number: int) -> str:
        text = stub.requests[number]["messages"][-1]["content"]
        asked_before = sum(body["messages"][-1]["content"] == text for body in stub.requests[:number])
        hers = "answer 0.1" in text or ("answer 0.0" in text and asked_before)
        return ("eleven" if number % 2 else "no_rating") if hers else "good"

    stub.script = decide
    task = _task(tmp_path, stub, num_parallel=1)
    problems = task.problems()
    verdicts = task.grade(problems, _answers(problems))
    first = {v.extractor.rsplit("/", 1)[1]: v for v in verdicts if v.uid == "0"}
    assert (first["turn1"].value, first["turn1"].extracted) == (7.0, "7")
    assert first["turn1"].reason == "2 of 3 judgements missing: a judgement without [[rating]] from 1 to 10"
    assert first["turn2"].value is None and first["overall"].value is None
    scores = {score.metric: score for score in task.scores(verdicts)}
    assert [(scores[m].num_problems, scores[m].num_missing) for m in ("rating", "rating/turn1", "rating/turn2")] == [
        (15, 1), (16, 0), (15, 1)
    ]  # fmt: skip
    assert scores["judgements_missing"].value == pytest.approx(5 / 96)
    # Bounded: 3 + 2 further rounds for each judgement that is lacking; and a second run pays for none of them.
    assert stub.paid == 30 * 3 + (3 + 3 + 3) + (3 + 2 + 2)
    assert _run(_task(tmp_path, stub))["judgements_missing"].value == pytest.approx(5 / 96)
    assert stub.paid == 106


def test_more_repeats_reuse_the_first(stub: Stub, tmp_path: Path) -> None:
    _run(_task(tmp_path, stub, repeats=1))
    assert stub.paid == 32
    _run(_task(tmp_path, stub))
    assert stub.paid == 96
    _run(_task(tmp_path, stub, judge_model="other", repeats=1))
    assert stub.paid == 128


def test_an_interrupted_run_pays_for_nothing_twice(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(what: str, done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(mtbench, "tell_progress", tell)
    with pytest.raises(KeyboardInterrupt):
        _run(_task(tmp_path, stub))
    assert 40 <= stub.paid < 60
    assert len(_cached(tmp_path)) == stub.paid
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert _run(_task(tmp_path, stub))["judgements_missing"].value == 0
    assert stub.paid == 96


def test_a_killed_process_goes_on(stub: Stub, tmp_path: Path) -> None:
    stub.script = lambda i: "late"
    _task(tmp_path, stub)
    script = f"""
from sftlab.tasks.mtbench import MTBench
from sftlab.tasks.task import Answer
folder = {str(tmp_path)!r}
task = MTBench(folder + "/question.jsonl", {stub.url!r}, "stub", references=folder + "/reference.jsonl",
               judge_cache=folder + "/judgements.jsonl", num_parallel=2)
problems = task.problems()
task.grade(problems, [Answer(p.uid, 0, tuple(f"answer {{p.uid}}.{{t}}" for t in range(2)), ()) for p in problems])
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ))
    deadline = time.monotonic() + 60
    while stub.paid < 40 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert 40 <= stub.paid < 96
    with (tmp_path / "judgements.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "torn')
    lost = stub.paid - len(_cached(tmp_path))
    assert 0 <= lost <= 2, "no more than what was under way"
    assert _run(_task(tmp_path, stub))["judgements_missing"].value == 0
    assert stub.paid == 96 + lost
    assert len(set(_cached(tmp_path))) == 96


def test_a_refused_key_stops_asking_and_stays_secret(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script = lambda i: "good" if i < 10 else "denied"
    task = _task(tmp_path, stub, num_parallel=4)
    problems = task.problems()
    verdicts = task.grade(problems, _answers(problems))
    assert len(stub.requests) <= 10 + 3 * 4
    assert stub.headers[0]["Authorization"] == f"Bearer {SECRET}"
    reasons = " ".join(verdict.reason for verdict in verdicts)
    assert "401 from 127.0.0.1" in reasons and "$OPENAI_API_KEY" in reasons and "***" in reasons
    assert SECRET not in reasons + (tmp_path / "judgements.jsonl").read_text() + repr(vars(task.judge))
    assert SECRET not in "".join(capsys.readouterr())
    assert task.scores(verdicts)[-1].value == pytest.approx(86 / 96)


def test_an_unreachable_judge_is_told_soon(stub: Stub, tmp_path: Path) -> None:
    task = _task(tmp_path, stub, judge_url="http://127.0.0.1:9/v1")
    begin = time.monotonic()
    scores = _run(task)
    assert time.monotonic() - begin < 10
    assert scores["judgements_missing"].value == 1 and scores["rating"].num_missing == 16


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5.0), ("good\n\nRating: [[7.5]].", 7.5), ("[[ 8 ]]", 8.0), ("**[[10]]**", 10.0),
        ("[[1]]", 1.0),
        ("The answer claims [[10]] for itself.\nRating: [[2]]", 2.0), ("Rating: [[8]]\nThank you.", 8.0),
        ("[[8]]/[[10]]", None), ("[[8]], so [[8]]", 8.0), ("[[11]]", None), ("[[0]]", None), ("[[0.5]]", None),
        ("[[-3]]", None), ("[[rating]]", None), ("[5]", None), ("Rating: 5", None), ("", None), ("Rating: [[6", None),
        ("[[7]]\n[[99]]", None),
    ],
)  # fmt: skip
def test_ratings(text: str, rating: float | None) -> None:
    assert read_rating(text) == rating


@given(st.text(alphabet="[]0123456789. \nx"))
def test_ratings_are_valid_or_none(text: str) -> None:
    rating = read_rating(text)
    assert rating is None or 1 <= rating <= 10


def test_own_prompts_hold_everything_once() -> None:
    prompts = JudgePrompts.own()
    for name, fields in FIELDS.items():
        values = {field: f"<<{field}> {{answer}}>" for field in fields}
        system, user = prompts.by_name[name].messages(values)
        assert system[0] == "system" and user[0] == "user"
        assert all(user[1].count(value) == 1 for value in values.values())
        assert "[[5]]" in user[1] and "\n\n\n\n" not in user[1]


def test_the_public_files_work_unchanged(stub: Stub, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mt_bench"
    files = {"path": str(folder / "question.jsonl"), "references": str(folder / "reference_gpt-4.jsonl")}
    task = _task(tmp_path, stub, **files, prompts=str(folder / "judge_prompts.jsonl"), repeats=1)
    problems = task.problems()
    assert len(problems) == 80 and sum(p.reference is not None for p in problems) == 30
    scores = _run(task)
    assert (scores["rating"].num_problems, scores["rating"].value, stub.paid) == (80, 7.0, 160)
    one_each = _task(tmp_path, stub, **files, num_problems=8).problems()
    assert len({problem.category for problem in one_each}) == 8
    with pytest.raises(ValueError, match="80 questions, 81 asked for"):
        _task(tmp_path, stub, **files, num_problems=81).problems()
    rows = [json.loads(line) for line in (folder / "judge_prompts.jsonl").open(encoding="utf-8")]
    for row in rows:
        if row["name"] in FIELDS:
            values = {field: f"<{field}> {{x}} {{question}}" for field in FIELDS[row["name"]]}
            messages = JudgePrompts.read(str(folder / "judge_prompts.jsonl")).by_name[row["name"]].messages(values)
            assert messages[-1][1] == row["prompt_template"].format(**values)


def test_results_name_judge_and_prompts(stub: Stub, tmp_path: Path) -> None:
    rows = [
        {"name": name, "system_prompt": "", "prompt_template": " ".join(f"{{{f}}}" for f in sorted(fields))}
        for name, fields in FIELDS.items()
    ]
    names = []
    for text in ("", " please"):
        rows[0]["system_prompt"] = text
        task = _task(tmp_path, stub, prompts=_write(tmp_path / "mine.jsonl", rows), repeats=1)
        problems = task.problems()[:1]
        names.append([verdict.extractor for verdict in task.grade(problems, _answers(problems))])
    assert [name.split("/")[0::2] for name in names[0]] == [["stub", "turn1"], ["stub", "turn2"], ["stub", "overall"]]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": None}, "record 11: math is judged beside a reference answer; give mt_bench.references"),
        ({"references": "question.jsonl"}, "question.jsonl, record 1: a reference has question_id and choices"),
        ({"path": "reference.jsonl"}, "record 1: a question has question_id, category and turns"),
        ({"path": "absent.jsonl"}, "no such file"),
        ({"prompts": "question.jsonl"}, "has no prompt named single-v1"),
        ({"prompts": "odd.jsonl"}, "has no prompt named single-v1"),
        ({"path": "torn.jsonl"}, "record 1: line 1 is not JSON"),
        ({"path": "three.jsonl"}, "record 1: turns must be a list of one or two texts"),
    ],
)
def test_malformed_files_are_refused(change: dict[str, Any], message: str, stub: Stub, tmp_path: Path) -> None:
    _write(tmp_path / "odd.jsonl", [{"name": name} for name in ([], {}, None, 5)])
    (tmp_path / "torn.jsonl").write_text('{"question_id": 1, "tur')
    _write(tmp_path / "three.jsonl", [{"question_id": 1, "category": "stem", "turns": ["a", "b", "c"]}])
    located = {key: value and str(tmp_path / value) for key, value in change.items()}
    with pytest.raises(ValueError, match=message):
        _task(tmp_path, stub, **located).problems()


def test_bad_options_are_refused(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_problems: 0"):
        _task(tmp_path, stub, num_problems=0)
    with pytest.raises(ValueError, match="repeats: 0"):
        _task(tmp_path, stub, repeats=0)
    with pytest.raises(ValueError, match="num_parallel: 0"):
        _task(tmp_path, stub, num_parallel=0)
