"""Uncertainty of means: normal, Student's and Wilson's intervals, and intervals from resamples.

Every interval of the package is a 95 % interval; only this module turns that level into quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # significance level of tests
Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations
SEED = 0  # of resamples: equal inputs always have equal intervals


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: nan if there is none, infinite if it exceeds the range that was tried."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean; ``error`` is its standard error, nan where there is none."""

    error: float = math.nan


def student(values: Sequence[float]) -> Mean:
    """Compute the mean of independent values with Student's interval; a single value has no interval.

    Raises:
        ValueError: There is no value.
    """
    n = len(values)
    if not n:
        raise ValueError("there is no mean without values")
    mean = sum(values) / n
    if n < 2:
        return Mean(mean)
    from scipy.special import stdtrit

    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * error
    return Mean(mean, mean - half, mean + half, error)


def normal(value: float, error: float) -> tuple[float, float]:
    """Return the ends of the interval of a value with a normal error."""
    return value - Z * error, value + Z * error


def error_of(low: float, high: float) -> float:
    """Return the standard error of a normal interval."""
    return (high - low) / (2 * Z)


def is_beyond_noise(difference: float, error: float) -> bool:
    """Return whether the normal interval of a difference excludes 0; False for nan."""
    return abs(difference) > Z * error


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Return the ends of the interval of a mean of ``n`` values in [0, 1] (Wilson 1927, derived for 0 or 1 values)."""
    centre = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
    return (max(0.0, centre - half) if mean > 0 else 0.0), (min(1.0, centre + half) if mean < 1 else 1.0)


def middle(samples: np.ndarray, axis: int = 0, is_ordered: bool = False) -> np.ndarray:
    """Return the ends of the middle 95 % of samples [2, ...].

    Args:
        samples: The samples, along ``axis``.
        axis: The axis of the samples.
        is_ordered: Whether samples cannot be interpolated (some are infinite), so that the ends must be among them.
    """
    ends = np.array([LEVEL / 2, 1 - LEVEL / 2])
    if is_ordered:
        return np.quantile(samples, ends, axis=axis, method="closest_observation")
    return np.quantile(samples, ends, axis=axis)


def normal_draws(mean: np.ndarray, error: np.ndarray, num_draws: int, seed: int = SEED) -> np.ndarray:
    """Draw means from normal distributions [num_draws, ...]: a parametric bootstrap."""
    return mean + np.random.default_rng(seed).normal(size=(num_draws, *np.shape(mean))) * error


def resampled_means(values_N: np.ndarray, num_draws: int, seed: int = SEED) -> np.ndarray:
    """Compute means of samples drawn with replacement [num_draws] (Efron and Tibshirani 1993, chapter 13)."""
    n = len(values_N)
    generator = np.random.default_rng(seed)
    chunk = max(1, 1_000_000 // n)  # resamples per chunk, which bounds memory
    means: list[np.ndarray] = []
    for start in range(0, num_draws, chunk):
        picked = generator.integers(n, size=(min(chunk, num_draws - start), n))
        means.append(values_N[picked].mean(1))
    return np.concatenate(means)
