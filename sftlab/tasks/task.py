"""What an evaluation is made of: problems go in, answers come back, verdicts grade them, scores sum them up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftlab.results.score import Score, mean_score
from sftlab.results.verdict import Verdict

__all__ = ["Answer", "Problem", "Sampling", "Score", "Task", "Verdict", "mean_score"]


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


class Task(ABC):
    """Problems and how answers to them are graded.

    Attributes:
        name: Names the task in files and tags, such as ``gsm8k``.
        sampling: How answers are drawn.
        best: The highest value of its scores.
    """

    name: str
    sampling: Sampling
    best: float = 1.0

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in a fixed order."""

    @abstractmethod
    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade every answer; one verdict per answer and extractor (and turn, where turns are rated apart)."""

    @abstractmethod
    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Sum verdicts up; the first score is the headline."""
