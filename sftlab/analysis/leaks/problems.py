"""The texts of evaluation problems (questions, reference answers), which training data must not contain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.data.conversation import BadRecord
from sftlab.data.readers import AlpacaReader, MathReader, MessagesReader, Reader, ShareGPTReader
from sftlab.data.records import BrokenRecord, read_records
from sftlab.tasks.registry import TASKS, build_task

_READERS: dict[str, type[Reader]] = {
    "question": MathReader,
    "query": MathReader,
    "instruction": AlpacaReader,
    "messages": MessagesReader,
    "conversations": ShareGPTReader,
}
_UIDS = ("task_id", "question_id", "uid", "id")


class ProblemText(NamedTuple):
    """One text of one problem; ``part`` is question or answer."""

    task: str
    problem: str
    part: str
    text: str


def read_problem_texts(against: str) -> list[ProblemText]:
    """Read the problem texts of ``NAME=FILE,NAME=FILE,...``; a task that finds its own problems needs no file.

    A file's records are read by the keys that they have: question and answer, prompt and canonical_solution or code
    (HumanEval, MBPP), turns or choices (MT-Bench's questions and reference answers), instruction, messages or
    conversations. One name may be given with several files.

    Raises:
        ValueError: A name without a file is not a task with problems of its own, a file cannot be read, or a record has
            none of these forms.
    """
    problem_texts: list[ProblemText] = []
    for item in filter(None, (part.strip() for part in against.split(","))):
        name, _, path = item.partition("=")
        problem_texts += _of_file(name, path) if path else _of_task(name)
    if not problem_texts:
        raise ValueError("--against: name evaluation sets, such as gsm8k=test.jsonl,humaneval")
    return problem_texts


def _of_task(name: str) -> list[ProblemText]:
    """Return the problems of a task that needs no file."""
    if name == "humaneval":
        from sftlab.tasks.humaneval import HumanEval

        return _of_file(name, str(HumanEval()._file()))  # the task drops the reference solutions, which matter here
    if name in TASKS and not name.startswith("lab_"):
        raise ValueError(f"--against: {name} needs its file: {name}=FILE")
    try:
        problems = build_task(name, {}).problems()
    except ValueError as error:
        raise ValueError(str(error).replace("--tasks", "--against", 1)) from None
    return [ProblemText(name, problem.uid, "question", text) for problem in problems for text in problem.prompts]


def _of_file(name: str, path: str) -> list[ProblemText]:
    problem_texts = []
    for number, record in enumerate(read_records(path), start=1):
        where = f"--against: {path}, record {number}"
        try:
            parts = [(part, text) for part, text in _parts(record) if text.strip()]
        except BadRecord as error:
            raise ValueError(f"{where}: {error}") from None
        if not parts:
            raise ValueError(f"{where}: neither question nor answer; it has {sorted(map(str, record))[:8]}")
        uid = next((str(record[key]) for key in _UIDS if key in record), "") or _hash(parts[0][1])
        problem_texts += [ProblemText(name, uid, part, text) for part, text in parts]
    if not problem_texts:
        raise ValueError(f"--against: {Path(path)}: no records")
    return problem_texts


def _parts(record: Any) -> Iterator[tuple[str, str]]:
    if isinstance(record, BrokenRecord):
        raise BadRecord(record.cause, record.reason)
    if not isinstance(record, dict):
        raise BadRecord("not a dictionary", type(record).__name__)
    if isinstance(record.get("turns"), list):
        yield from (("question", str(text)) for text in record["turns"])
    elif isinstance(record.get("choices"), list) and record["choices"]:
        yield from (("answer", str(text)) for text in record["choices"][0].get("turns", []))
    elif key := next((key for key in _READERS if key in record), ""):
        talk, _ = _READERS[key]().read(record)
        yield from (("answer" if turn.role == "assistant" else "question", turn.text) for turn in talk.turns)
    else:
        for part, keys in (("question", ("prompt", "text")), ("answer", ("canonical_solution", "code"))):
            yield from ((part, record[key]) for key in keys if isinstance(record.get(key), str))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
