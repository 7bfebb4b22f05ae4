"""The parts of an evaluation: problems are answered, answers get verdicts, verdicts are summarised as scores."""

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
        max_new_tokens: Maximum number of tokens of an answer.
        temperature: Sampling temperature; 0 is greedy decoding.
        num_samples: Number of answers to each problem.
        seed: Sample ``i`` of a problem uses a generator seeded by (seed, problem uid, i) alone.

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
    """One problem: user prompts, asked in turn in one conversation, and what the grader needs.

    Attributes:
        uid: Name of the problem within its task.
        prompts: One user message per turn.
        reference: What the grader needs (JSON-serialisable); never shown to the model.
        category: A label for scores by category.
        temperature: Overrides the task's sampling temperature.
        system: A system turn before the first prompt.
    """

    uid: str
    prompts: tuple[str, ...]
    reference: Any = None
    category: str = ""
    temperature: float | None = None
    system: str = ""


@dataclass(frozen=True)
class Answer:
    """The texts that a model generated for one problem, one per turn.

    Attributes:
        uid: Uid of the problem.
        sample: Number of the sample, from 0.
        texts: Generated text of each turn, without special tokens.
        complete: For each turn, whether the end-of-turn token came before ``max_new_tokens``.
        missing: Why a turn has no text for reasons other than the model's ability (a server that returns only
            reasoning, a content filter, a prompt that does not fit). Such an answer is not graded and does not count
            as wrong. Empty if every turn has a text.
    """

    uid: str
    sample: int
    texts: tuple[str, ...]
    complete: tuple[bool, ...] = ()
    missing: str = ""


def options_of(task: str, num_problems: int | None, **sampling: Any) -> Sampling:
    """Check the options that most tasks have; return the ``Sampling`` with the given arguments.

    Raises:
        ValueError: A number is out of bounds; the message names the task.
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
    """Problems and how answers to them are graded. Subclass it to write a task of your own.

    ``sftlab docs extending/task`` shows a complete example. A task is used by its class path, for an ability::

        {class_path: ScoreAbilities, init_args: {tasks: {general: {class_path: my_tasks.Capitals}}}}

    or on the command line, where its options are prefixed by its name::

        python -m sftlab evaluate --checkpoint RUN --tasks my_tasks.Capitals --capitals.max_new_tokens 8

    Problems and answers are written to ``<name>.problems.jsonl`` with their verdicts. Change the name of an extractor
    (``contains@2``) when its rule changes: scores by different rules are different measurements.

    Attributes:
        name: Name of the task in files and tags, such as ``gsm8k``.
        sampling: How answers are drawn.
        best: The highest possible score; None for a loss.
    """

    name: str
    sampling: Sampling
    best: float | None = 1.0
    is_checked_by_building = True  # creating one is quick, so configs are checked by doing it

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in a fixed order.

        Raises:
            ValueError: Something is missing. Raised before anything is trained or answered.
        """

    @abstractmethod
    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade the answers: one verdict per answer and extractor (and per turn, if turns are rated separately).

        Every turn of these answers has a text: an answer without one is missing, not wrong, and is not passed in.
        """

    def grading(self) -> dict[str, Any]:
        """Settings that verdicts depend on beside problem and answer (limits, a judge), for the fingerprint."""
        return {}

    def rules(self, problem: Problem) -> Sequence[str]:
        """Names of the extractors that grade an answer to a problem; empty if only ``grade`` knows."""
        return ()

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Summarise verdicts as scores, the headline first. By default, the mean over problems for each extractor."""
        names = dict.fromkeys(verdict.extractor for verdict in verdicts)
        binary = all(v.value is None or 0 <= v.value <= 1 for v in verdicts)
        return [
            mean_over_problems(self.name, f"mean/{name}", [v for v in verdicts if v.extractor == name], binary)
            for name in names
        ]


class ModelTask(Task):
    """A task that measures the model itself rather than its answers: likelihoods of texts, tasks of other tools."""

    sampling = Sampling()

    def problems(self) -> list[Problem]:
        """No problems. May raise a ValueError if something is missing."""
        return []

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """No verdicts: there are no answers."""
        return []

    @abstractmethod
    def measure(self, model: Any) -> list[Score]:
        """Score a model (a ``LocalModel``), the headline first."""
