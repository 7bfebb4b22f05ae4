"""Searches over a grid that is measured already: what a search with a fifth of the runs would have found.

Scores are looked up in the place of runs, so that a search costs seconds. Searches differ in which of a composition's
runs they are given, and in the order of compositions, which settles ties of the design. What they say is held against
runs that they were not given: those with the grid's second seed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from sftlab.search.observation import Observation, Trial
from sftlab.search.search import Search, Site
from sftlab.search.spec import SearchSpec, read_search

ABILITIES = ("math", "code", "general")
METRIC = "accuracy/exact@2"
Cell = tuple[int, ...]
Lines = Mapping[tuple[str, int], Mapping[str, Any]]


def scores_of(line: Mapping[str, Any]) -> np.ndarray:
    """A run's scores, as parts of one [A]."""
    return np.array([line["scores"][f"{a} {METRIC}"] / 100 for a in ABILITIES])


def by_cell(lines: Lines, base: str = "lab:base") -> dict[Cell, dict[int, np.ndarray]]:
    """Scores by composition and seed of the runs that were trained."""
    found: dict[Cell, dict[int, np.ndarray]] = {}
    for (_, seed), line in lines.items():
        if line["cell"] and line["base"] == base and "cpu_seconds" in line:
            found.setdefault(tuple(line["cell"]), {})[seed] = scores_of(line)
    return found


def noise_of(cells: Mapping[Cell, Mapping[int, np.ndarray]]) -> np.ndarray:
    """Standard deviation between seeds, pooled over compositions with several [A]."""
    many = [np.stack(list(runs.values())) for runs in cells.values() if len(runs) > 1]
    freedom = sum(len(one) - 1 for one in many)
    return np.sqrt(sum(((one - one.mean(0)) ** 2).sum(0) for one in many) / freedom)


class Measured(Site):
    """Runs that are there already.

    Args:
        cells: Scores by composition and seed.
        parts: Shares are multiples of one over it.
        seed: Decides which of a composition's runs stands for which seed of a trial.
    """

    def __init__(self, cells: Mapping[Cell, Mapping[int, np.ndarray]], parts: int, seed: int) -> None:
        self.cells, self.parts, self.seed = cells, parts, seed

    def tokens(self, trials: Sequence[Trial], more: Sequence[Trial]) -> int:
        """Not counted."""
        return 0

    def saved_tokens(self, trials: Sequence[Trial]) -> tuple[int, int]:
        """Not counted."""
        return 0, 0

    def carry_out(self, trials: Sequence[Trial]) -> None:
        """Nothing is left to do."""

    def cell(self, point: Any) -> Cell:
        """The composition of a point."""
        return tuple(round(share * self.parts) for share in point[0])

    def observations(self, trials: Sequence[Trial]) -> list[Observation]:
        """As measured."""
        found = []
        for trial in trials:
            runs = self.cells[cell := self.cell(trial.point)]
            order = np.random.default_rng([self.seed, *cell]).permutation(sorted(runs)).tolist()
            for seed in trial.seeds:
                values = runs[order[(seed - 1) % len(order)]]
                found.append(Observation(trial.name, seed, dict(zip(ABILITIES, values.tolist(), strict=True))))
        return found


class Found(NamedTuple):
    """What one search came to.

    Attributes:
        best: The composition that it takes.
        has_effect: Whether it saw any effect of the composition.
        mean: Predicted score of each composition and ability [A].
        error: Standard error of these [A].
        forms: Form of each ability's surface.
        num_runs: Runs that it was given, those of its check among them.
    """

    best: Cell
    has_effect: bool
    mean: dict[Cell, np.ndarray]
    error: dict[Cell, np.ndarray]
    forms: tuple[str, ...]
    num_runs: int


def spec_of(parts: int, sizes: Mapping[str, int], runs: int) -> SearchSpec:
    """A search over the whole lattice, as tools/search_calibration has it."""
    shares = {"shares": {ability: [0, 1] for ability in ABILITIES}, "step": 1 / parts}
    content = {"base": "none", "factors": {"share": shares}, "budget": {"runs": runs}, "batch": 3, "verify": 2}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search.yaml"
        path.write_text(yaml.safe_dump(content))
        return read_search(path, sizes)


def searches(
    spec: SearchSpec, cells: Mapping[Cell, Mapping[int, np.ndarray]], parts: int, seeds: Sequence[int]
) -> Iterator[Found]:
    """One search for each seed."""
    for seed in seeds:
        site = Measured(cells, parts, seed)
        with tempfile.TemporaryDirectory() as folder:
            search = Search(spec, site, Path(folder))
            order = np.random.default_rng(seed).permutation(len(search.candidates)).tolist()
            search.candidates = [search.candidates[i] for i in order]
            search.run()
            beliefs = search.beliefs()
        points = [site.cell(point) for point in search.candidates]
        means, errors = [], []
        for ability in ABILITIES:
            mean_P, cov_PP = beliefs.surfaces[ability].predict(search.candidates)
            means.append(mean_P)
            errors.append(np.sqrt(np.maximum(np.diag(cov_PP), 0)))
        yield Found(
            points[beliefs.best()],
            beliefs.has_effect,
            dict(zip(points, np.array(means).T, strict=True)),
            dict(zip(points, np.array(errors).T, strict=True)),
            tuple(beliefs.surfaces[ability].form for ability in ABILITIES),
            sum(trial.num_runs for trial in search.trials),
        )


def covered(found: Found, fresh: Mapping[Cell, np.ndarray], noise_A: np.ndarray) -> np.ndarray:
    """Whether fresh runs lie where the search's intervals and the noise of one run say [cells, A]."""
    return np.array([
        np.abs(score_A - found.mean[cell]) <= 1.96 * np.sqrt(found.error[cell] ** 2 + noise_A**2)
        for cell, score_A in fresh.items()
    ])  # fmt: skip


def shuffled(cells: Mapping[Cell, Mapping[int, np.ndarray]], seed: int) -> dict[Cell, dict[int, np.ndarray]]:
    """The same runs under the names of other compositions: a mixture without any effect.

    Each run is moved by itself, so that seeds of one composition differ as compositions do.
    """
    places = [(cell, one) for cell, runs in cells.items() for one in runs]
    order = np.random.default_rng(seed).permutation(len(places)).tolist()
    found: dict[Cell, dict[int, np.ndarray]] = {}
    for (cell, one), i in zip(places, order, strict=True):
        from_cell, from_seed = places[i]
        found.setdefault(cell, {})[one] = cells[from_cell][from_seed]
    return found


def utility(score_A: np.ndarray) -> float:
    """The mean of the three."""
    return float(np.mean(score_A))


def regret_noise(noise_A: np.ndarray) -> float:
    """Standard deviation of the weighted mean of one run."""
    return math.sqrt(float((noise_A**2).sum())) / len(noise_A)
