"""A score with its uncertainty, and the line that it is in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sftlab.results.row import checked, finite
from sftlab.stats.interval import normal, wilson


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


_NUMBERS = ("value", "standard_error", "low", "high")


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One line of a ``scores.jsonl``: a score, and what it is a score of.

    Attributes:
        value: With ``standard_error``, ``low`` and ``high`` None where it could not be measured.
        headline: Whether it is the task's first, the one that tables and figures show.
        best: The highest value that there can be; None for a loss.
        fingerprint: Hash of what was asked, how, and what answers were held against: equal ones may be compared.
        ability: What it is a score of, in a run.
        stage: After which stage of a run, or before training.
        step: After which optimizer step of a run.
        inside: Taken inside a stage, not at its end.
        checkpoint: What was scored, as the user named it, where it was no run in training.
        weights: Hash of its files.
        server: The endpoint that answered.
    """

    task: str
    metric: str
    value: float | None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    num_problems: int | None = None
    num_missing: int = 0
    headline: bool = False
    best: float | None = 1.0
    fingerprint: str | None = None
    ability: str | None = None
    stage: str | None = None
    step: int | None = None
    inside: bool = False
    checkpoint: str | None = None
    weights: str | None = None
    server: str | None = None

    @classmethod
    def of(cls, score: Score, headline: bool, best: float | None, **about: Any) -> ScoreRow:
        """The row of a score; ``about`` says what it is a score of, by the names above."""
        fields = asdict(score) | {name: finite(getattr(score, name)) for name in _NUMBERS}
        return cls(**fields, headline=headline, best=best, **about)

    @classmethod
    def from_dict(cls, row: object, place: str) -> ScoreRow:
        """What a line says, checked.

        Raises:
            ValueError: It is no such line; ``place`` says which.
        """
        return checked(cls, row, place)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {name: finite(getattr(self, name)) for name in _NUMBERS}

    def score(self) -> Score:
        """The score alone; nan where it was not measured."""
        low, high, value, error = (
            math.nan if number is None else number for number in (self.low, self.high, self.value, self.standard_error)
        )
        return Score(self.task, self.metric, self.num_problems or 0, value, error, low, high, self.num_missing)
