"""A score with its uncertainty, and its line in a file."""

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
        metric: What is measured, with its extractor: ``accuracy/strict@1``, ``pass@1``, ``rating/turn1``.
        num_problems: Number of problems in the mean.
        value: The mean over problems.
        standard_error: Standard error of the mean, over problems.
        low: With ``high``, the 95 % interval of the mean.
        num_missing: Number of problems without a verdict, which are not in the mean.
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
    """Compute the mean of per-problem values with a 95 % interval.

    Args:
        task: Name of the task.
        metric: Name of the metric.
        values: One value per problem (its mean over samples).
        num_missing: Number of problems left out for lack of a verdict.
        binary: Whether values are in [0, 1]; the interval is then Wilson's (Wilson 1927), otherwise the normal one.
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
        value: None if it could not be measured, as are ``standard_error``, ``low`` and ``high``.
        headline: Whether it is the task's main score, which tables and figures show.
        best: The highest possible value; None for a loss.
        fingerprint: Hash of what was asked and how it was graded; scores with equal fingerprints are comparable.
        ability: The ability that is scored, in a run.
        stage: The stage of the run after which it was taken, or ``before training``.
        step: The optimizer step of the run after which it was taken.
        inside: Whether it was taken inside the stage, not at its end.
        checkpoint: What was scored, as the user named it, outside of training.
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
        """Build the row of a score; ``about`` are the fields that say what was scored."""
        fields = asdict(score) | {name: finite(getattr(score, name)) for name in _NUMBERS}
        return cls(**fields, headline=headline, best=best, **about)

    @classmethod
    def from_dict(cls, row: object, place: str) -> ScoreRow:
        """Return the checked content of a line.

        Raises:
            ValueError: It is invalid; the message begins with ``place``.
        """
        return checked(cls, row, place)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self) | {name: finite(getattr(self, name)) for name in _NUMBERS}

    def score(self) -> Score:
        """Return the score; nan if it was not measured."""
        low, high, value, error = (
            math.nan if number is None else number for number in (self.low, self.high, self.value, self.standard_error)
        )
        return Score(self.task, self.metric, self.num_problems or 0, value, error, low, high, self.num_missing)
