"""The search space: its points, which of them may be chosen, and their features for a surface model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sftlab.search.factors import Choice, Factor, Number, Shares, Value

Point = tuple[Value, ...]
"""One value per factor, in their order."""

MOST_CANDIDATES = 768
"""A larger space is represented by this many points, spread evenly."""


@dataclass(frozen=True)
class Anchor:
    """A run that is always made.

    Attributes:
        name: Name of its runs.
        point: Its point of the space; None if it is outside the space.
        alone: The ability that it trains alone, if any.
        changes: Changes of the config, by dotted keys. An anchor outside the space without any trains its ability, or
            all abilities, in one stage.
    """

    name: str
    point: Point | None
    alone: str = ""
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Space:
    """The factors of a search and the points that they span."""

    factors: tuple[Factor, ...]

    @cached_property
    def shares(self) -> list[Shares]:
        """Its simplices."""
        return [factor for factor in self.factors if isinstance(factor, Shares)]

    def middle(self) -> Point:
        """Return the point at which each factor is held while another one varies."""
        return tuple(factor.middle() for factor in self.factors)

    def with_value(self, name: str, value: Value) -> Point:
        """Return the middle with one factor changed."""
        return tuple(value if factor.name == name else factor.middle() for factor in self.factors)

    def allows(self, point: Point) -> bool:
        """Return whether all values lie within their bounds."""
        return all(factor.allows(value) for factor, value in zip(self.factors, point, strict=True))

    def text(self, point: Point) -> str:
        """Return a point as readable text."""
        parts = []
        for factor, value in zip(self.factors, point, strict=True):
            parts.append(factor.text(value) if isinstance(factor, Shares) else f"{factor.name} {factor.text(value)}")
        return ", ".join(parts)

    def grid(self, point: Point) -> dict[str, dict[str, Any]]:
        """Return a point as the grid of one run of a study."""
        return {k: v for f, value in zip(self.factors, point, strict=True) for k, v in f.grid(value).items()}

    def candidates(self, seed: int = 0) -> list[Point]:
        """Return every point of the space if they are few, else a space-filling set (Sobol, Dirichlet for shares)."""
        levels = [factor.levels() for factor in self.factors]
        if all(levels) and math.prod(map(len, levels)) <= MOST_CANDIDATES:
            return list(itertools.product(*levels))
        return self.spread(MOST_CANDIDATES, seed)

    def spread(self, num_points: int, seed: int = 0) -> list[Point]:
        """Return distinct points that fill the space evenly."""
        from scipy.stats import qmc

        engine = qmc.Sobol(sum(factor.num_draws for factor in self.factors), seed=seed)
        found: dict[Point, None] = {}
        for _ in range(64):
            for row in engine.random(256).tolist():
                if (point := self._point(row)) is not None:
                    found.setdefault(point)
                if len(found) == num_points:
                    return list(found)
        return list(found)

    def _point(self, draws: Sequence[float]) -> Point | None:
        values: list[Value] = []
        start = 0
        for factor in self.factors:
            value = factor.at(draws[start : start + factor.num_draws])
            if value is None:
                return None
            values.append(value)
            start += factor.num_draws
        return tuple(values)

    def anchors(self) -> list[Anchor]:
        """Return each ability alone and the data's own proportions for every simplex; k = 0 and other zeros."""
        found = [Anchor("proportional" if self.shares else "middle", self.middle())]
        for factor in self.factors:
            if isinstance(factor, Shares):
                for ability in factor.abilities:
                    point = self.with_value(factor.name, factor.alone(ability))
                    found.append(Anchor(f"{ability}_alone", point, alone=ability))
            if isinstance(factor, Number) and factor.is_log and factor.values[0] == 0:
                found.append(Anchor(f"{factor.name}_0", self.with_value(factor.name, 0.0)))
        return found

    def columns(self, points: Sequence[Point]) -> Columns:
        """Return points as numbers."""
        share: list[list[float]] = []
        number: list[list[float]] = []
        choice: list[list[float]] = []
        for point in points:
            pairs = list(zip(self.factors, point, strict=True))
            share.append([s for f, v in pairs if isinstance(f, Shares) for s in v])  # type: ignore[union-attr, misc]
            number.append([f.unit(v) for f, v in pairs if isinstance(f, Number)])
            choice.append([float(v == name) for f, v in pairs if isinstance(f, Choice) for name in list(f.options)[1:]])
        size = len(points)
        return Columns(*(np.array(rows, dtype=float).reshape(size, -1) for rows in (share, number, choice)))


@dataclass(frozen=True, eq=False)
class Columns:
    """Points as numbers.

    Attributes:
        share_PS: Shares.
        number_PN: Other numbers, scaled to 0..1 between their bounds on their own scale.
        choice_PK: Whether each option but the first is chosen.
    """

    share_PS: np.ndarray
    number_PN: np.ndarray
    choice_PK: np.ndarray

    def plain(self) -> np.ndarray:
        """Return the features of the mixing law: shares as they are (one per simplex is redundant and does no harm)."""
        return np.hstack([self.share_PS, self.number_PN, self.choice_PK])

    def rooted(self) -> np.ndarray:
        """Return the features of the Gaussian process: square roots of shares, so that 0 and 1/16 lie apart."""
        return np.hstack([np.sqrt(self.share_PS), self.number_PN, 0.7 * self.choice_PK])

    def logged(self) -> np.ndarray:
        """Return the features of the quadratic: logarithms of shares (scaled from 0 for none to 1 for all)."""
        floor = 1 / 64
        log_PS = 1 + np.log(np.maximum(self.share_PS, 0) + floor) / -math.log(floor / (1 + floor))
        return np.hstack([log_PS, self.number_PN, self.choice_PK])

    def quadratic(self) -> np.ndarray:
        """Add their squares and products; choices have no squares."""
        base_PF = self.logged()
        num_choices = self.choice_PK.shape[1]
        first_choice = base_PF.shape[1] - num_choices
        pairs = [(i, j) for i in range(base_PF.shape[1]) for j in range(i, base_PF.shape[1])]
        kept = [(i, j) for i, j in pairs if i < first_choice]
        return np.hstack([base_PF, *(base_PF[:, [i]] * base_PF[:, [j]] for i, j in kept)])
