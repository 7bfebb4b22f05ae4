"""Mixture policies: how many examples of each ability make up one epoch of a mixture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from sftlab.plan.pool import Pool, Unit


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split ``total`` into whole numbers by shares that sum to 1 (Hamilton's largest remainders; ties by name)."""
    quotas = {name: total * share for name, share in shares.items()}
    counts = {name: math.floor(quota + 1e-9) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (counts[name] - quotas[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


class MixturePolicy(ABC):
    """How the selected examples of several abilities are mixed into one stream.

    A subclass defines the share of each ability in an epoch. The epoch is then as large as it can be without repeating
    any ability more than ``max_repeats`` times.

    Attributes:
        counted_in: What shares count: examples, tokens or supervised_tokens.
        max_repeats: How often an epoch may contain one example: 1.0 repeats none; fractions such as 2.5 are allowed.
        resample: Whether each epoch takes the next examples in rank, wrapping around, instead of the same ones.
    """

    counted_in: Unit = "examples"
    max_repeats: float = 1.0
    resample: bool = False

    @abstractmethod
    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """The share of each ability in an epoch, counted in ``counted_in``; shares sum to 1."""

    def counts(self, pools: Sequence[Pool]) -> dict[str, int]:
        """Number of examples of each ability in one epoch; a number larger than the pool repeats examples."""
        shares = self._checked_shares(pools)
        sizes = {pool.ability: pool.total(self.counted_in) for pool in pools}
        limits = [self.max_repeats * sizes[name] / share for name, share in shares.items() if share > 0]
        total = math.floor(min(limits, default=0) + 1e-6)
        if self.counted_in == "examples":
            return apportion(total, shares)
        return {pool.ability: _examples_worth(pool, shares[pool.ability] * total, self.counted_in) for pool in pools}

    def _checked_shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        shares = self.shares(pools)
        names = [pool.ability for pool in pools]
        if set(shares) != set(names) or any(not 0 <= s <= 1 for s in shares.values()):
            raise ValueError(f"{type(self).__name__}: shares {shares} must name {names}, each between 0 and 1")
        if names and abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"{type(self).__name__}: shares sum to {sum(shares.values()):.6f}; they must sum to 1")
        return shares


def _examples_worth(pool: Pool, target: float, unit: Unit) -> int:
    """Return how many examples, in rank and wrapping around, have a total size nearest to ``target``."""
    cumulative_N = np.cumsum(pool.sizes_N(unit))
    if not len(pool) or cumulative_N[-1] == 0:
        return 0
    laps, rest = divmod(target, float(cumulative_N[-1]))
    upper = int(np.searchsorted(cumulative_N, rest - 1e-6))
    below = float(cumulative_N[upper - 1]) if upper else 0.0
    above = float(cumulative_N[min(upper, len(pool) - 1)])
    return int(laps) * len(pool) + (upper + 1 if above - rest < rest - below else upper)


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else dict.fromkeys(weights, 0.0)


def checked_unit(unit: str) -> None:
    """Check that a unit is known.

    Raises:
        ValueError: It is not known.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"counted_in: {unit!r} is not one of {', '.join(get_args(Unit))}")


class Proportional(MixturePolicy):
    """Concatenate and shuffle: every selected example once per epoch (the mixture of the paper, section 3.3)."""

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """Shares proportional to the pools' sizes."""
        return _normalised({pool.ability: float(len(pool)) for pool in pools})


class EqualCount(MixturePolicy):
    """The same number of examples of each ability: as many as the smallest has (the paper, appendix H)."""

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """Equal shares."""
        return _normalised({pool.ability: 1.0 for pool in pools})


class WeightedShares(MixturePolicy):
    """Shares proportional to given weights.

    Args:
        weights: Relative sampling weight of each ability; they need not sum to 1. Those of abilities that a stage does
            not train are ignored.
        counted_in: What shares count: examples, tokens or supervised_tokens.
        max_repeats: How often an epoch may contain one example; with 1.0 nothing is repeated, so the scarcest ability
            determines the size of the epoch.
        resample: Whether each epoch takes new examples of an ability that is not used up.
    """

    def __init__(
        self, weights: dict[str, float], counted_in: Unit = "examples", max_repeats: float = 1.0, resample: bool = False
    ) -> None:
        checked_unit(counted_in)
        if not weights or any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights: {weights} must be at least 0, and one of them larger")
        if max_repeats <= 0:
            raise ValueError(f"max_repeats: {max_repeats} must be larger than 0")
        self.weights, self.counted_in, self.max_repeats, self.resample = weights, counted_in, max_repeats, resample

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """The weights of the given abilities, normalised."""
        missing = [pool.ability for pool in pools if pool.ability not in self.weights]
        if missing:
            raise ValueError(f"weights: no weight for {missing}; weights are given for {sorted(self.weights)}")
        return _normalised({pool.ability: self.weights[pool.ability] for pool in pools})


class Temperature(MixturePolicy):
    """Shares proportional to size ** (1 / temperature): 1 is proportional, large values approach equal shares.

    The temperature-scaled mixing of Raffel et al. 2020 (arXiv 1910.10683, section 3.5.2), without its size limit.

    Args:
        temperature: At least 1.
        counted_in: What sizes and shares count: examples, tokens or supervised_tokens.
        max_repeats: How often an epoch may contain one example.
        resample: Whether each epoch takes new examples of an ability that is not used up.
    """

    def __init__(
        self, temperature: float, counted_in: Unit = "examples", max_repeats: float = 1.0, resample: bool = False
    ) -> None:
        checked_unit(counted_in)
        if temperature < 1:
            raise ValueError(f"temperature: {temperature} must be at least 1 (1 is proportional)")
        if max_repeats <= 0:
            raise ValueError(f"max_repeats: {max_repeats} must be larger than 0")
        self.temperature, self.counted_in = temperature, counted_in
        self.max_repeats, self.resample = max_repeats, resample

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """Shares flattened by the temperature."""
        return _normalised({p.ability: p.total(self.counted_in) ** (1 / self.temperature) for p in pools})
