"""What a search has observed: one record per run, with the score of each ability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from sftlab.search.space import Anchor, Point


@dataclass(frozen=True)
class Trial:
    """One composition to run, with its seeds.

    Attributes:
        name: Name of the config in the study.
        point: Point of the space; None for an anchor outside the space.
        seeds: Seeds of its runs.
        why: anchor, design, improvement or verification.
        anchor: The anchor, if this is one.
    """

    name: str
    point: Point | None
    seeds: tuple[int, ...]
    why: str
    anchor: Anchor | None = None

    @property
    def num_runs(self) -> int:
        """One run per seed."""
        return len(self.seeds)


@dataclass(frozen=True)
class Observation:
    """One run's scores.

    Attributes:
        trial: Name of the trial.
        seed: Seed of the run.
        values: Score of each ability, divided by the best possible.
        problems: File of verdicts of each ability, if there is one, with the metric of the score.
    """

    trial: str
    seed: int
    values: Mapping[str, float]
    problems: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def mean_of(observations: Sequence[Observation], trial: str, ability: str) -> float:
    """Compute the mean score of a trial over its seeds."""
    return fmean(o.values[ability] for o in observations if o.trial == trial)
