"""What an evaluation is made of: problems go in, answers come back, verdicts grade them, scores sum them up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftlab.bounds import within
from sftlab.results.score import Score, mean_score
from sftlab.results.verdict import Verdict

__all__ = ["Answer", "Problem", "Sampling", "Score", "Task", "Verdict", "mean_over_problems", "mean_score"]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn from a model.

    Attributes:
        max_new_tokens: Tokens generated at most for one answer.
        temperature: 0 is greedy decoding.
        num_samples: Answers drawn for each problem.
        seed: Sample ``i`` of a problem draws from a generator seeded by (seed, problem uid, i) alone.

    Raises:
        ValueError: A number is out of bounds, or several samples at temperature 0 would all be the same.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        within("max_new_tokens", self.max_new_tokens, 1, 1_000_000, is_whole=True)
        within("temperature", self.temperature, 0, 100)
        within("num_samples", self.num_samples, 1, 10_000, is_whole=True)
        within("seed", self.seed, 0, 2**63 - 1, is_whole=True)
        if self.num_samples > 1 and self.temperature <= 0:
            raise ValueError(
                f"num_samples: {self.num_samples} samples at temperature 0 are all the same; set a temperature"
            )


@dataclass(frozen=True)
class Problem:
    """One problem: user prompts asked in turn (each later one sees the model's own earlier answers) and what grades it.

    Attributes:
        uid: Names the problem within its task.
        prompts: One user message per turn.
        reference: What the grader needs (JSON-able); never shown to the model.
        category: Free label, for per-category scores.
        temperature: Overrides the task's sampling temperature when given.
        system: A system turn before the first prompt, where the model's template has room for one.
    """

    uid: str
    prompts: tuple[str, ...]
    reference: Any = None
    category: str = ""
    temperature: float | None = None
    system: str = ""


@dataclass(frozen=True)
class Answer:
    """The raw texts that a model gave to one problem, one per turn.

    Attributes:
        uid: The problem's.
        sample: Number of the sample, from 0.
        texts: Generated text of each turn, special tokens removed.
        complete: For each turn, whether the end-of-turn token was reached before ``max_new_tokens``.
        missing: Why a turn has no text where that says nothing of the model's ability (a server that gives reasoning
            alone, a content filter, a prompt that does not fit); such an answer is not graded and not counted as wrong.
            Empty where every turn has a text.
    """

    uid: str
    sample: int
    texts: tuple[str, ...]
    complete: tuple[bool, ...] = ()
    missing: str = ""


def options_of(task: str, num_problems: int | None, **sampling: Any) -> Sampling:
    """The options that most tasks have, checked; ``sampling`` are those of ``Sampling``.

    Raises:
        ValueError: A number is out of bounds; told by the task's name.
    """
    try:
        if num_problems is not None:
            within("num_problems", num_problems, 1, 10_000_000, is_whole=True)
        return Sampling(**sampling)
    except ValueError as error:
        raise ValueError(f"{task}.{error}") from None


def mean_over_problems(task: str, metric: str, verdicts: Sequence[Verdict], binary: bool = True) -> Score:
    """Mean over problems of the means over their samples; a problem without a value is missing."""
    values: dict[str, list[float]] = {verdict.uid: [] for verdict in verdicts}
    for verdict in verdicts:
        if verdict.value is not None:
            values[verdict.uid].append(verdict.value)
    means = [sum(mine) / len(mine) for mine in values.values() if mine]
    return mean_score(task, metric, means, num_missing=len(values) - len(means), binary=binary)


class Task(ABC):
    """Problems and how answers to them are graded; the class to write for a task of one's own.

    ``sftlab docs extending/task`` shows one whole. It is used by its class path. As the task of an ability::

        {class_path: ScoreAbilities, init_args: {tasks: {general: {class_path: my_tasks.Capitals}}}}

    On the command line, where its options go by its name::

        python -m sftlab evaluate --checkpoint RUN --tasks my_tasks.Capitals --capitals.max_new_tokens 8

    Problems and answers are written to ``<name>.problems.jsonl`` with their verdicts. Change the name of an extractor
    (``contains@2``) when its rule changes: scores by different rules are different measurements.

    Attributes:
        name: Names the task in files and tags, such as ``gsm8k``.
        sampling: How answers are drawn.
        best: The highest value of its scores; None for a loss.
    """

    name: str
    sampling: Sampling
    best: float | None = 1.0
    is_checked_by_building = True  # making one is quick and changes nothing, so that configs are checked by it

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in a fixed order.

        Raises:
            ValueError: Something is missing; told before anything is trained or answered.
        """

    @abstractmethod
    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade every answer; one verdict per answer and extractor (and turn, where turns are rated apart).

        Every turn of every answer given here has a text; what has none is missing, not wrong, and never comes here.
        """

    def grading(self) -> dict[str, Any]:
        """Settings that a verdict depends on beside problem and answer, for the fingerprint: limits, a judge."""
        return {}

    def rules(self, problem: Problem) -> Sequence[str]:
        """Extractors of the verdicts that an answer to a problem gets; empty where only ``grade`` knows."""
        return ()

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Sum verdicts up; the first score is the headline. Here: the mean over problems by each extractor."""
        names = dict.fromkeys(verdict.extractor for verdict in verdicts)
        binary = all(v.value is None or 0 <= v.value <= 1 for v in verdicts)
        return [
            mean_over_problems(self.name, f"mean/{name}", [v for v in verdicts if v.extractor == name], binary)
            for name in names
        ]


class ModelTask(Task):
    """A task that looks at the model itself, not at its answers: likelihoods of texts, other tools' tasks."""

    sampling = Sampling()

    def problems(self) -> list[Problem]:
        """None; what is missing is told here."""
        return []

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Nothing: there are no answers."""
        return []

    @abstractmethod
    def measure(self, model: Any) -> list[Score]:
        """Score a model (a ``LocalModel``); the first score is the headline."""
