"""Run tasks with a model: answers, verdicts and scores, each in a file of its own; a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from sftlab.evaluate.local import Backend
from sftlab.files import read_jsonl, whole_file
from sftlab.tasks.task import Answer, Problem, Score, Task, Verdict

Tell = Callable[[int, int], None]  # problems answered so far, problems in all


def run_task(
    task: Task, backend: Backend, folder: Path, about: dict[str, object], tell: Tell | None = None
) -> tuple[list[Score], list[Verdict], list[Answer]]:
    """Answer, grade and score one task.

    Args:
        task: What is asked.
        backend: What answers.
        folder: Gets ``<task>.answers.jsonl`` (appended as answers come), ``<task>.problems.jsonl`` (one line per
            verdict with prompts, answers, what was extracted and why) and a line per score in ``scores.jsonl``.
        about: Goes into every line of ``scores.jsonl``: checkpoint and so on, with the ``fingerprint`` of the task.
            Answers are only reused when both are the same.
        tell: Called as answers come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = task.problems()
    about = {**about, "fingerprint": fingerprint(task, problems)}
    answers = _answers(task, problems, backend, folder / f"{task.name}.answers.jsonl", about, tell)
    verdicts = task.grade(problems, answers)
    scores = task.scores(verdicts)
    _write_whole(folder / f"{task.name}.problems.jsonl", _lines(task, problems, answers, verdicts))
    save_scores(folder, about, scores)
    return scores, verdicts, answers


def fingerprint(task: Task, problems: Sequence[Problem]) -> str:
    """Hash of what is asked, how answers are drawn and what they are held against: equal ones may be compared."""
    asked = [task.name, asdict(task.sampling), [asdict(problem) for problem in problems]]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()


def save_scores(folder: Path, about: dict[str, object], scores: Sequence[Score]) -> None:
    """Put scores into ``scores.jsonl``, in the place of earlier ones of the same tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {score.task for score in scores}
    kept = [line for line in read_jsonl(folder / "scores.jsonl") if line["task"] not in tasks]
    _write_whole(folder / "scores.jsonl", [*kept, *({**about, **asdict(score)} for score in scores)])


def _answers(
    task: Task, problems: Sequence[Problem], backend: Backend, path: Path, about: dict[str, object], tell: Tell | None
) -> list[Answer]:
    head = {"about": about, "task": task.name}
    lines = read_jsonl(path)
    if not lines or lines[0] != json.loads(json.dumps(head)):
        lines = []
    uids = {problem.uid for problem in problems}
    have = [Answer(x["uid"], x["sample"], tuple(x["texts"]), tuple(x["complete"])) for x in lines[1:]]
    have = [answer for answer in have if answer.uid in uids]
    _write_whole(path, [head, *map(asdict, have)])
    count = {uid: 0 for uid in uids}
    for answer in have:
        count[answer.uid] += 1
    left = [problem for problem in problems if count[problem.uid] < task.sampling.num_samples]
    redo = {problem.uid for problem in left}
    have = [answer for answer in have if answer.uid not in redo]
    with path.open("a", encoding="utf-8") as file:
        for group in backend.answer(left, task.sampling):
            for answer in group:
                file.write(json.dumps(asdict(answer)) + "\n")
            file.flush()
            have += group
            if tell is not None:
                tell(len(have), len(problems) * task.sampling.num_samples)
    order = {problem.uid: i for i, problem in enumerate(problems)}
    return sorted(have, key=lambda answer: (order[answer.uid], answer.sample))


def _lines(
    task: Task, problems: Sequence[Problem], answers: Sequence[Answer], verdicts: Sequence[Verdict]
) -> Iterable[dict]:
    by_uid = {problem.uid: problem for problem in problems}
    texts = {(answer.uid, answer.sample): answer.texts for answer in answers}
    for verdict in verdicts:
        said = {"prompts": by_uid[verdict.uid].prompts, "answers": texts[verdict.uid, verdict.sample]}
        yield {"task": task.name, **asdict(verdict), **said}


def _write_whole(path: Path, lines: Iterable[dict]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
