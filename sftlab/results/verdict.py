"""What a grader says of one answer, and the line that it is in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sftlab.results.row import checked


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


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One line of a ``<task>.problems.jsonl``: a verdict, with what was asked and answered."""

    task: str
    uid: str
    sample: int
    extractor: str
    extracted: str | None = None
    value: float | None
    reason: str = ""
    category: str = ""
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: str, verdict: Verdict, prompts: tuple[str, ...], answers: tuple[str, ...]) -> VerdictRow:
        """The row of a verdict."""
        return cls(task=task, prompts=prompts, answers=answers, **asdict(verdict))

    @classmethod
    def from_dict(cls, row: object, place: str) -> VerdictRow:
        """What a line says, checked.

        Raises:
            ValueError: It is no such line; ``place`` says which.
        """
        return checked(cls, row, f"{place}: not a verdict")

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)
