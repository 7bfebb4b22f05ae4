"""The dials of the lab."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SKILLS = ("arithmetic", "python")
"""Kinds of general talk whose prompts look like math and like code."""


@dataclass(frozen=True)
class LabOptions:
    """Options of the generated abilities; test problems follow them too, except for the noise.

    Attributes:
        overlap: Share of the general conversations that ask math-like (half) or code-like (half) things. 0: none, and
            no conflict.
        ambiguity: How alike those prompts and the specialised ones look. 0: every prompt shows where it comes from;
            1: all of them could come from a specialised ability.
        noise: Share of the training conversations whose answers belong to another prompt.
        difficulty: 0: one step and small numbers; 1: four steps and large numbers.
        seed: Other seeds give other training conversations and other test problems.
    """

    overlap: float = 0.8
    ambiguity: float = 0.85
    noise: float = 0.0
    difficulty: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A dial lies outside [0, 1].
        """
        for name in ("overlap", "ambiguity", "noise", "difficulty"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"lab.{name}: {value} does not lie between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for keys and files."""
        return asdict(self)
