"""What an evaluation is made of: problems go in, answers come back, verdicts grade them, scores sum them up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftlab.stats.interval import normal, wilson


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn from a model.

    Attributes:
        max_new_tokens: Tokens generated at most for one answer.
        temperature: 0 is greedy decoding.
        num_samples: Answers drawn for each problem.
        seed: Sample ``i`` of a problem draws from a generator seeded by (seed, problem uid, i) alone.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """One problem: user prompts asked in turn (each later one sees the model's own earlier answers) and what grades it.

    Attributes:
        uid: Names the problem within its task.
        prompts: One user message per turn.
        reference: What the grader needs (JSON-able); never shown to the model.
        category: Free label, for per-category scores.
        temperature: Overrides the task's sampling temperature when given.
    """

    uid: str
    prompts: tuple[str, ...]
    reference: Any = None
    category: str = ""
    temperature: float | None = None


@dataclass(frozen=True)
class Answer:
    """The raw texts that a model gave to one problem, one per turn.

    Attributes:
        uid: The problem's.
        sample: Number of the sample, from 0.
        texts: Generated text of each turn, special tokens removed.
        complete: For each turn, whether the end-of-turn token was reached before ``max_new_tokens``.
    """

    uid: str
    sample: int
    texts: tuple[str, ...]
    complete: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What one grader says of one answer.

    Attributes:
        extractor: Name and version of the rule that read the answer, such as ``strict@1``.
        extracted: What the rule found, or None.
        value: 0 or 1 for right and wrong, a rating, or None where no verdict could be had.
        reason: One short line for people.
    """

    uid: str
    sample: int
    extractor: str
    extracted: str | None
    value: float | None
    reason: str = ""
    category: str = ""


@dataclass(frozen=True)
class Score:
    """One number with its uncertainty.

    Attributes:
        metric: What is measured, extractor included: ``accuracy/strict@1``, ``pass@1``, ``rating/turn1``.
        num_problems: Problems that the value is a mean over.
        value: The mean.
        standard_error: Of the mean, over problems.
        num_missing: Problems without a verdict; they are not in the mean and never hidden.
    """

    task: str
    metric: str
    num_problems: int
    value: float
    standard_error: float
    low: float
    high: float
    num_missing: int = 0


def mean_score(task: str, metric: str, values: Sequence[float], num_missing: int = 0, binary: bool = True) -> Score:
    """Mean of per-problem values with a 95 % interval.

    Args:
        task: Name of the task.
        metric: Name of the metric.
        values: One value per problem (a problem's mean over its samples).
        num_missing: Problems left out because no verdict could be had.
        binary: Values lie in [0, 1]: Wilson's interval (Wilson 1927); otherwise the normal one.
    """
    n = len(values)
    if n == 0:
        return Score(task, metric, 0, math.nan, math.nan, math.nan, math.nan, num_missing)
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1))
    error = spread / math.sqrt(n)
    low, high = wilson(mean, n) if binary else normal(mean, error)
    return Score(task, metric, n, mean, error, low, high, num_missing)


class Task(ABC):
    """Problems and how answers to them are graded.

    Attributes:
        name: Names the task in files and tags, such as ``gsm8k``.
        sampling: How answers are drawn.
    """

    name: str
    sampling: Sampling

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in a fixed order."""

    @abstractmethod
    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade every answer; one verdict per answer and extractor (and turn, where turns are rated apart)."""

    @abstractmethod
    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Sum verdicts up; the first score is the headline."""
