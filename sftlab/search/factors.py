"""Factors of a search: what may vary, within which bounds, and which config keys a value sets.

shares   parts of a mixture, on a simplex: a multiple of ``step`` for each ability, together 1
number   a fraction, k, epochs, steps, a learning rate; on a linear or a logarithmic scale
choice   named changes, such as orders of stages
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sftlab.plan.policy import apportion

Value = float | str | tuple[float, ...]
_MOST_LEVELS = 20_000


@dataclass(frozen=True)
class Factor(ABC):
    """One factor of a search."""

    name: str

    @property
    @abstractmethod
    def num_draws(self) -> int:
        """Number of uniform numbers that determine one value."""

    @abstractmethod
    def levels(self) -> list[Value]:
        """Return every possible value, in order; empty if there are too many."""

    @abstractmethod
    def at(self, draws: Sequence[float]) -> Value | None:
        """Return the value for these numbers between 0 and 1; None if it is out of bounds."""

    @abstractmethod
    def middle(self) -> Value:
        """Return the value to hold this factor at while another one varies."""

    @abstractmethod
    def grid(self, value: Value) -> dict[str, dict[str, Any]]:
        """Return the value as factors of a study's grid."""

    @abstractmethod
    def text(self, value: Value) -> str:
        """Return the value as readable text."""

    def allows(self, value: Value) -> bool:
        """Return whether the value lies within the bounds."""
        return True


@dataclass(frozen=True)
class Shares(Factor):
    """Shares of abilities.

    Attributes:
        abilities: Names, in order; a value is a tuple of their shares.
        low: The smallest share of each ability.
        high: The largest share of each ability.
        step: Shares are multiples of it.
        key: Config key; the ability's name is appended to it.
        proportional: The shares of the data, rounded to the step.
    """

    abilities: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    step: float = 0.1
    key: str = "data.policy.weights"
    proportional: tuple[float, ...] | None = None

    @property
    def num_draws(self) -> int:
        """One for each ability."""
        return len(self.abilities)

    @property
    def _parts(self) -> int:
        return round(1 / self.step)

    def levels(self) -> list[Value]:
        """Return all points of the lattice within the bounds."""
        n, a = self._parts, len(self.abilities)
        if math.comb(n + a - 1, a - 1) > _MOST_LEVELS:
            return []
        bars = itertools.combinations(range(n + a - 1), a - 1)
        found = [[j - i - 1 for i, j in itertools.pairwise([-1, *bar, n + a - 1])] for bar in bars]
        values = [tuple(part / n for part in parts) for parts in found]
        return [value for value in values if self.allows(value)]

    def at(self, draws: Sequence[float]) -> Value | None:
        """Draw evenly from the simplex (Dirichlet with all 1), above the smallest shares, rounded to the step."""
        weight_A = -np.log(np.clip(draws, 1e-12, 1 - 1e-12))
        rest = 1 - sum(self.low)
        share_A = np.array(self.low) + rest * weight_A / weight_A.sum()
        value = self.rounded(share_A.tolist())
        return value if self.allows(value) else None

    def rounded(self, shares: Sequence[float]) -> tuple[float, ...]:
        """Return the nearest shares that are multiples of the step."""
        counts = apportion(self._parts, {f"{i:06d}": share / sum(shares) for i, share in enumerate(shares)})
        return tuple(count / self._parts for count in counts.values())

    def middle(self) -> Value:
        """Return the data's proportions if they are known and allowed, else equal shares."""
        equal = self.rounded([1.0] * len(self.abilities))
        value = self.proportional or equal
        if self.allows(value):
            return value
        levels = self.levels()
        return min(levels, key=lambda v: sum((a - b) ** 2 for a, b in zip(_tuple(v), equal, strict=True)))

    def grid(self, value: Value) -> dict[str, dict[str, Any]]:
        """Return one factor for each ability."""
        pairs = zip(self.abilities, _tuple(value), strict=True)
        return {f"{self.name}_{a}": {"keys": [f"{self.key}.{a}"], "values": [round(share, 9)]} for a, share in pairs}

    def text(self, value: Value) -> str:
        """Format as: math 30 %, code 20 %, ..."""
        return ", ".join(f"{a} {share_text(share)}" for a, share in zip(self.abilities, _tuple(value), strict=True))

    def allows(self, value: Value) -> bool:
        """Return whether every share lies within its bounds."""
        triples = zip(self.low, _tuple(value), self.high, strict=True)
        return all(low - 1e-9 <= share <= high + 1e-9 for low, share, high in triples)

    def alone(self, ability: str) -> tuple[float, ...]:
        """Return the point that has only this ability."""
        return tuple(float(a == ability) for a in self.abilities)


@dataclass(frozen=True)
class Number(Factor):
    """A number between two bounds.

    Attributes:
        keys: Config keys that it sets.
        values: Its levels, ascending.
        is_log: Whether the scale is logarithmic; 0 is then placed one level below the smallest positive one.
    """

    keys: tuple[str, ...]
    values: tuple[float, ...]
    is_log: bool = False

    @property
    def num_draws(self) -> int:
        """One."""
        return 1

    def levels(self) -> list[Value]:
        """Return the given levels, or even ones on its scale."""
        return list(self.values)

    def at(self, draws: Sequence[float]) -> Value | None:
        """Return one of the levels."""
        return self.values[min(int(draws[0] * len(self.values)), len(self.values) - 1)]

    def middle(self) -> Value:
        """Return the middle level."""
        return self.values[len(self.values) // 2]

    def grid(self, value: Value) -> dict[str, dict[str, Any]]:
        """Return one factor."""
        text, number = self.text(value), float(value)  # type: ignore[arg-type]
        plain: Any = int(number) if number.is_integer() else number
        return {self.name: {"keys": list(self.keys), "values": [text if "/" in text else plain]}}

    def text(self, value: Value) -> str:
        """Format as 1/16 if it is such a fraction."""
        number = float(value)  # type: ignore[arg-type]
        near = Fraction(number).limit_denominator(65536)
        is_power = near.numerator == 1 and near.denominator > 2 and near.denominator & (near.denominator - 1) == 0
        return f"1/{near.denominator}" if is_power and abs(float(near) - number) < 1e-12 else f"{number:g}"

    def unit(self, value: Value) -> float:
        """Return its position between the bounds, from 0 to 1."""
        number = float(value)  # type: ignore[arg-type]
        if not self.is_log:
            return (number - self.values[0]) / (self.values[-1] - self.values[0])
        positive = [v for v in self.values if v > 0]
        num_steps = len(positive) - 1
        span = math.log(positive[-1]) - math.log(positive[0])
        step = span / num_steps
        low = math.log(positive[0]) - (step if self.values[0] == 0 else 0.0)
        place = low if number <= 0 else math.log(number)
        return (place - low) / (math.log(positive[-1]) - low)


@dataclass(frozen=True)
class Choice(Factor):
    """One of several named changes.

    Attributes:
        options: The changes of each option, by dotted config keys.
    """

    options: Mapping[str, Mapping[str, Any]]

    @property
    def num_draws(self) -> int:
        """One."""
        return 1

    def levels(self) -> list[Value]:
        """Return the names."""
        return list(self.options)

    def at(self, draws: Sequence[float]) -> Value | None:
        """Return one of the names."""
        return list(self.options)[min(int(draws[0] * len(self.options)), len(self.options) - 1)]

    def middle(self) -> Value:
        """Return the first name."""
        return next(iter(self.options))

    def grid(self, value: Value) -> dict[str, dict[str, Any]]:
        """Return one factor."""
        return {self.name: {"values": {str(value): dict(self.options[str(value)])}}}

    def text(self, value: Value) -> str:
        """Return the name."""
        return str(value)


def _tuple(value: Value) -> tuple[float, ...]:
    assert isinstance(value, tuple), f"{value!r} is not Shares"
    return value


def even_levels(low: float, high: float, is_log: bool, is_whole: bool, num_levels: int) -> tuple[float, ...]:
    """Return evenly spaced levels with three significant digits, except powers of two, which stay exact."""
    ends = (math.log2(low), math.log2(high)) if is_log else (low, high)
    found = np.linspace(*ends, num_levels).tolist()
    values = [2.0**v if is_log else v for v in found]
    if is_whole:
        return tuple(dict.fromkeys(float(round(v)) for v in values))
    return tuple(dict.fromkeys(_short(v) for v in values))


def share_text(share: float) -> str:
    """Format a share in percent, with a decimal if needed, so that shares add up as shown: 25%, 7.7%."""
    return f"{share:.0%}" if abs(100 * share - round(100 * share)) < 0.05 else f"{share:.1%}"


def _short(value: float) -> float:
    power = math.log2(value) if value > 0 else 0.5
    return value if value == 0 or abs(power - round(power)) < 1e-9 else float(f"{value:.3g}")
