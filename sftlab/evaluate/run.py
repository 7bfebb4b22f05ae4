"""Runs tasks with a model: answers, verdicts and scores, each in its own file; a killed run can be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sftlab.evaluate.backend import Backend
from sftlab.files import appended, checked_name, read_jsonl, whole_file
from sftlab.results.row import checked, finite
from sftlab.results.score import ScoreRow
from sftlab.results.verdict import Verdict, VerdictRow
from sftlab.tasks.task import Answer, ModelTask, Problem, Score, Task

Tell = Callable[[int, int], None]  # problems answered so far, problems in all
Graded = tuple[list[ScoreRow], list[Verdict], list[Answer]]


@dataclass(frozen=True)
class Answered:
    """A task with its answers, which are already in their file."""

    task: Task
    problems: Sequence[Problem]
    answers: list[Answer]
    folder: Path
    about: dict[str, Any]

    def grade(self) -> Graded:
        """Grade and score the answers, and write verdicts and scores.

        Raises:
            ValueError: The task lacks something.
        """
        task, problems, answers = self.task, self.problems, self.answers
        verdicts = _verdicts(task, problems, answers)
        rows = score_rows(task.scores(verdicts), task.best, self.about | {"fingerprint": fingerprint(task, problems)})
        _write_whole(self.folder / f"{task.name}.problems.jsonl", _lines(task, problems, answers, verdicts))
        save_scores(self.folder, rows)
        return rows, verdicts, answers


def run_task(
    task: Task, backend: Backend, folder: Path, about: dict[str, Any], tell: Tell | None = None, system: str = ""
) -> Graded:
    """Answer, grade and score one task.

    Args:
        task: The task.
        backend: Answers the problems.
        folder: Receives ``<task>.answers.jsonl`` (appended as answers come), ``<task>.problems.jsonl`` (one line per
            verdict with prompts, answers, what was extracted and why) and a line per score in ``scores.jsonl``.
        about: Fields of ``ScoreRow`` for every line of ``scores.jsonl``: checkpoint and weights, or stage and step; the
            ``fingerprint`` of the task is added. Existing answers are only reused if they are from the same model to
            the same questions, sampled in the same way; they are graded again each time.
        tell: Called with the numbers of answered problems and of all problems.
        system: A system turn for problems that have none.

    Raises:
        ValueError: The task's requirements are not met, or the model cannot answer.
    """
    if not isinstance(task, ModelTask):
        return answer_task(task, backend, folder, about, tell, system).grade()
    problems = _asked_of(task, folder, system)
    scores = task.measure(backend)
    rows = score_rows(scores, task.best, about | {"fingerprint": fingerprint(task, problems)})
    save_scores(folder, rows)
    return rows, [], []


def cut_lines(task: Task, answers: Sequence[Answer]) -> list[str]:
    """Return a line that counts answers cut before their end, which are graded as they are; empty if there are none."""
    cut = sum(not all(answer.complete) for answer in answers if not answer.missing)
    most = f"max_new_tokens ({task.sampling.max_new_tokens:,}) or the model's positions"
    line = f"{task.name}: {cut:,} of {len(answers):,} answers were cut at {most}; they are graded as they are."
    return [line] if cut else []


def answer_task(
    task: Task, backend: Backend, folder: Path, about: dict[str, Any], tell: Tell | None = None, system: str = ""
) -> Answered:
    """Answer a task, to be graded later. Arguments as for ``run_task``.

    Raises:
        ValueError: The task's requirements are not met, or the model cannot answer.
    """
    problems = _asked_of(task, folder, system)
    _check(task, problems)
    answers = _answers(task, problems, backend, folder / f"{task.name}.answers.jsonl", about, tell)
    return Answered(task, problems, answers, folder, about)


def _asked_of(task: Task, folder: Path, system: str) -> list[Problem]:
    folder.mkdir(parents=True, exist_ok=True)
    checked_name("task", task.name)
    return [replace(one, system=one.system or system) for one in task.problems()]


def _check(task: Task, problems: Sequence[Problem]) -> None:
    uids = [problem.uid for problem in problems]
    if not problems or len(set(uids)) < len(uids):
        twice = next((uid for uid in uids if uids.count(uid) > 1), "")
        raise ValueError(f"{task.name}: {f'two problems have the uid {twice!r}' if twice else 'it has no problems'}")
    if empty := [problem.uid for problem in problems if not problem.prompts or isinstance(problem.prompts, str)]:
        raise ValueError(f"{task.name}: problem {empty[0]!r} asks nothing; prompts is a tuple of texts, one a turn")


def model_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``about`` that identify the model: its weights, wherever they are stored; else all."""
    return {"weights": about["weights"]} if about.get("weights") else dict(about)


def _verdicts(task: Task, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
    """Let the task grade the answers that have a text; the others get verdicts without a value, which say why."""
    graded = task.grade(problems, [answer for answer in answers if not answer.missing])
    found = list(dict.fromkeys(verdict.extractor for verdict in graded))
    of_answer: dict[tuple[str, int], list[Verdict]] = {(answer.uid, answer.sample): [] for answer in answers}
    for verdict in graded:
        if (verdict.uid, verdict.sample) not in of_answer:
            raise ValueError(
                f"{task.name}: grade gave a verdict on {verdict.uid!r}, sample {verdict.sample}: no answer"
            )
        value = finite(None if verdict.value is None else float(verdict.value))
        extracted = None if verdict.extracted is None else str(verdict.extracted)
        of_answer[verdict.uid, verdict.sample].append(replace(verdict, value=value, extracted=extracted))
    by_uid = {problem.uid: problem for problem in problems}
    for answer in answers:
        if answer.missing:
            problem = by_uid[answer.uid]
            of_answer[answer.uid, answer.sample] = [
                Verdict(answer.uid, answer.sample, rule, None, None, answer.missing, problem.category)
                for rule in task.rules(problem) or found or ["no text"]
            ]
    return [verdict for mine in of_answer.values() for verdict in mine]


def fingerprint(task: Task, problems: Sequence[Problem]) -> str:
    """Hash what is asked, how answers are sampled, the references and the grading; equal hashes may be compared."""
    return _hash(task, [_asked(task, problems), [problem.reference for problem in problems], task.grading()])


def _asked(task: Task, problems: Sequence[Problem]) -> str:
    """Hash everything that an answer depends on, except the model."""
    turns = [(problem.uid, problem.system, problem.prompts, problem.temperature) for problem in problems]
    return _hash(task, [task.name, asdict(task.sampling), turns])


def _hash(task: Task, value: Any) -> str:
    try:
        return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
    except TypeError as error:
        raise ValueError(f"{task.name}: a problem's reference and grading() hold what JSON can hold: {error}") from None


def score_rows(scores: Sequence[Score], best: float | None, about: dict[str, Any]) -> list[ScoreRow]:
    """Return the rows of a task's scores; the first is the headline."""
    return [ScoreRow.of(score, headline=i == 0, best=best, **about) for i, score in enumerate(scores)]


def save_scores(folder: Path, rows: Sequence[ScoreRow]) -> None:
    """Write scores to ``scores.jsonl``, replacing earlier ones of the same tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks, path = {row.task for row in rows}, folder / "scores.jsonl"
    kept = [row for row in read_scores(path) if row.task not in tasks]
    _write_whole(path, (row.to_dict() for row in [*kept, *rows]))


def read_scores(path: Path) -> list[ScoreRow]:
    """Read the scores of a file; none if the file is missing.

    Raises:
        ValueError: A line is malformed.
    """
    return [ScoreRow.from_dict(row, f"{path}, line {number}") for number, row in enumerate(read_jsonl(path), 1)]


def _answers(
    task: Task, problems: Sequence[Problem], backend: Backend, path: Path, about: dict[str, Any], tell: Tell | None
) -> list[Answer]:
    head = {"task": task.name, "asked": _asked(task, problems), "model": model_of(about)}
    lines = read_jsonl(path)
    if not lines or lines[0] != json.loads(json.dumps(head)):
        lines = []
    by_uid: dict[str, list[Answer]] = {problem.uid: [] for problem in problems}
    for number, line in enumerate(lines[1:], 2):
        answer = checked(Answer, line, f"{path}, line {number}")
        if answer.uid in by_uid and not answer.missing:  # problems without a text are asked again
            by_uid[answer.uid].append(answer)
    left = [problem for problem in problems if len(by_uid[problem.uid]) < task.sampling.num_samples]
    for problem in left:
        by_uid[problem.uid].clear()
    have = [answer for mine in by_uid.values() for answer in mine]
    _write_whole(path, [head, *map(asdict, have)])
    total = len(problems) * task.sampling.num_samples
    if tell is not None and left:
        tell(len(have), total)
    with appended(path) as file:
        for group in backend.answer(left, task.sampling):
            for answer in group:
                file.write(json.dumps(asdict(answer)) + "\n")
            file.flush()
            have += group
            if tell is not None:
                tell(len(have), total)
    order = {problem.uid: i for i, problem in enumerate(problems)}
    return sorted(have, key=lambda answer: (order[answer.uid], answer.sample))


def _lines(
    task: Task, problems: Sequence[Problem], answers: Sequence[Answer], verdicts: Sequence[Verdict]
) -> Iterable[dict]:
    prompts = {problem.uid: problem.prompts for problem in problems}
    texts = {(answer.uid, answer.sample): answer.texts for answer in answers}
    for verdict in verdicts:
        yield VerdictRow.of(task.name, verdict, prompts[verdict.uid], texts[verdict.uid, verdict.sample]).to_dict()


def _write_whole(path: Path, lines: Iterable[dict]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
