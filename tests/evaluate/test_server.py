"""Answers through a server: what has no text is missing with its cause, faults that last end in one message."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_stub import Stub

from sftlab.endpoint.client import ChatClient
from sftlab.evaluate.run import run_task
from sftlab.evaluate.server import ServerModel
from sftlab.results.verdict import missing_lines
from sftlab.tasks.gsm8k import GSM8K
from sftlab.tasks.task import Answer, Problem, Sampling, Task, Verdict


class Echo(Task):
    """Right where the last text holds the reference; two turns, a system turn before them."""

    name = "echo"
    sampling = Sampling(16)

    def problems(self) -> list[Problem]:
        return [Problem(str(i), (f"ask {i}", "again"), "Fine", system="Be brief.") for i in range(6)]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        assert all(len(answer.texts) == 2 for answer in answers)
        return [Verdict(a.uid, a.sample, "in@1", a.texts[-1], float("Fine" in a.texts[-1])) for a in answers]


def server(stub: Stub, **options: Any) -> ServerModel:
    return ServerModel(ChatClient(stub.url, "m", num_parallel=1, **options))


def without_text(stub: Stub, **message: Any) -> None:
    body = {"choices": [{"message": {"content": None, **message}, "finish_reason": "stop"}]}
    stub.do_silent = lambda to, _: stub.send(to, 200, json.dumps(body).encode())  # type: ignore[attr-defined]


def questions(folder: Path, count: int) -> str:
    rows = [{"question": f"What is {i} plus 7?", "answer": "#### 7"} for i in range(count)]
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_no_text_is_missing_not_wrong_and_asked_for_again(stub: Stub, tmp_path: Path) -> None:
    without_text(stub, reasoning_content="7. #### 7")
    stub.script = lambda i: "silent" if i % 2 else "good"
    task = GSM8K(questions(tmp_path, 8))
    rows, verdicts, answers = run_task(task, server(stub), tmp_path / "to", {})
    for row in rows:
        assert (row.num_problems, row.num_missing, row.metric.split("/")[0]) == (4, 4, "accuracy")
    assert missing_lines("gsm8k", verdicts) == [
        "gsm8k: 4 of 8 answers have no verdict and are in no mean:",
        "  4 x reasoning alone, without an answer",
    ]
    assert [bool(answer.missing) for answer in answers] == [False, True] * 4
    assert len(stub.requests) == 8
    stub.script = lambda i: "good"
    rows, verdicts, _ = run_task(task, server(stub), tmp_path / "to", {})
    assert len(stub.requests) == 12 and rows[0].num_problems == 8 and not missing_lines("gsm8k", verdicts)
    run_task(task, server(stub), tmp_path / "to", {})
    assert len(stub.requests) == 12


def test_where_nothing_has_a_text_nothing_is_measured(stub: Stub, tmp_path: Path) -> None:
    without_text(stub, refusal="No.")
    stub.script = lambda i: "silent"
    for task in (GSM8K(questions(tmp_path, 3)), Echo()):
        rows, verdicts, _ = run_task(task, server(stub), tmp_path / "to", {})
        assert rows[0].value is None and rows[0].num_missing == len(task.problems())
        assert {v.reason for v in verdicts} == {"a refusal instead of text"} and not any(v.value for v in verdicts)
        json.loads((tmp_path / "to" / "scores.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)


def test_a_task_of_ones_own_sees_only_whole_answers(stub: Stub, tmp_path: Path) -> None:
    without_text(stub, tool_calls=[{"id": "x"}])
    stub.script = lambda i: "silent" if i in (2, 8) else "good"  # one first turn, one second turn
    rows, _, _ = run_task(Echo(), server(stub), tmp_path / "to", {})
    assert (rows[0].metric, rows[0].value, rows[0].num_problems, rows[0].num_missing) == ("mean/in@1", 1.0, 4, 2)
    assert {message["role"] for message in stub.requests[0]["messages"]} == {"system", "user"}
    assert [m["role"] for m in stub.requests[-1]["messages"]] == ["system", "user", "assistant", "user"]
    lines = [json.loads(line) for line in (tmp_path / "to" / "echo.problems.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and sum(line["reason"].startswith("tool calls alone") for line in lines) == 2


def test_faults_between_answers_are_missing_and_told(stub: Stub, tmp_path: Path) -> None:
    stub.script = lambda i: "too_long" if i == 1 else "good"
    rows, verdicts, _ = run_task(GSM8K(questions(tmp_path, 4)), server(stub), tmp_path / "to", {})
    assert (rows[0].num_problems, rows[0].num_missing) == (3, 1)
    assert "no reply: 400 from 127.0.0.1" in missing_lines("gsm8k", verdicts)[1]


@pytest.mark.parametrize(("act", "said"), [("page", "a web page instead"), ("denied", "401"), ("no_model", "400")])
def test_faults_that_last_are_one_error(act: str, said: str, stub: Stub, tmp_path: Path) -> None:
    stub.script = lambda i: act
    with pytest.raises(ValueError, match=rf"{stub.url}: .*{said}.*nothing was answered"):
        run_task(GSM8K(questions(tmp_path, 2)), server(stub), tmp_path / "to", {})
    assert len(stub.requests) <= 2
    stub.requests.clear()
    stub.script = lambda i: "good" if i < 3 else act
    with pytest.raises(ValueError, match="the same call goes on after what was answered"):
        run_task(GSM8K(questions(tmp_path, 30)), server(stub), tmp_path / "to", {})
    assert len(stub.requests) <= 6
    stub.requests.clear()
    stub.script = lambda i: "good"
    run_task(GSM8K(questions(tmp_path, 30)), server(stub), tmp_path / "to", {})
    assert len(stub.requests) == 27


def test_a_damaged_file_of_answers_is_one_message(stub: Stub, tmp_path: Path) -> None:
    task = GSM8K(questions(tmp_path, 4))
    run_task(task, server(stub), tmp_path / "to", {})
    path = tmp_path / "to" / "gsm8k.answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for bad in ('{"uid": 3}\n', "garbage\n", '{"uid": "x", "sample": 0, "texts": "abc"}\n'):
        path.write_text("".join([*lines[:2], bad, *lines[2:]]))
        with pytest.raises(ValueError, match=r"gsm8k\.answers\.jsonl, line 3"):
            run_task(task, server(stub), tmp_path / "to", {})
