"""The verdict of a grader on an answer, and its line in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sftlab.results.row import checked


@dataclass(frozen=True)
class Verdict:
    """The verdict of one grader on one answer.

    Attributes:
        uid: Uid of the problem.
        sample: Number of the sample, from 0.
        extractor: Name and version of the rule that read the answer, such as ``strict@1``.
        extracted: What the rule found, or None.
        value: 1 for right and 0 for wrong, a rating, or None if there is no verdict.
        reason: A short explanation.
        category: Category of the problem.
    """

    uid: str
    sample: int
    extractor: str
    extracted: str | None
    value: float | None
    reason: str = ""
    category: str = ""


def why_missing(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count answers without a verdict by cause, the most frequent first; each answer counts once."""
    causes = {(v.uid, v.sample): v.reason for v in reversed(verdicts) if v.value is None}
    return dict(Counter(causes.values()).most_common())


def missing_lines(task: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Return lines that report answers without a verdict, by cause; empty if every answer has one."""
    causes = why_missing(verdicts)
    if not causes:
        return []
    answers = len({(verdict.uid, verdict.sample) for verdict in verdicts})
    head = f"{task}: {sum(causes.values()):,} of {answers:,} answers have no verdict and are in no mean:"
    shown = [f"  {number:,} x {cause}" for cause, number in list(causes.items())[:5]]
    more = [f"  and {len(causes) - 5:,} other causes"] if len(causes) > 5 else []
    return [head, *shown, *more]


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
        """Build the row of a verdict."""
        return cls(task=task, prompts=prompts, answers=answers, **asdict(verdict))

    @classmethod
    def from_dict(cls, row: object, place: str) -> VerdictRow:
        """Return the checked content of a line.

        Raises:
            ValueError: It is invalid; the message begins with ``place``.
        """
        return checked(cls, row, f"{place}: not a verdict")

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)
