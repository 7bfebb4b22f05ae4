"""What a search has seen: one record a run, with the score of each ability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from sftlab.search.space import Anchor, Point


@dataclass(frozen=True)
class Trial:
    """One composition that is run, with the seeds that it is run with.

    Attributes:
        name: Of the config in the study.
        point: Where it lies in the space; None for an anchor outside of it.
        seeds: Of its runs.
        why: anchor, design, improvement or verification.
        anchor: The anchor that it is, if it is one.
    """

    name: str
    point: Point | None
    seeds: tuple[int, ...]
    why: str
    anchor: Anchor | None = None

    @property
    def num_runs(self) -> int:
        """One for each seed."""
        return len(self.seeds)


@dataclass(frozen=True)
class Observation:
    """One run's scores.

    Attributes:
        trial: Name of the trial.
        seed: Of the run.
        values: Score of each ability, as a part of the best possible.
        problems: File of verdicts of each ability, where there is one, with the metric that the score is.
    """

    trial: str
    seed: int
    values: Mapping[str, float]
    problems: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def mean_of(observations: Sequence[Observation], trial: str, ability: str) -> float:
    """Mean score of a trial over its seeds."""
    return fmean(o.values[ability] for o in observations if o.trial == trial)
