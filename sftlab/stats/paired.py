"""Compares two models problem by problem: as both answer the same problems, most of the noise cancels.

The samples of a problem are averaged first, so that problems are the unit.

    every value 0 or 1     McNemar's exact test (McNemar 1947): of the problems that only one of the two solves, is the
                           split further from even than a fair coin's? Interval of Bonett and Price (2012).
    other values           paired bootstrap over problems (Efron and Tibshirani 1993, chapters 13 and 16): percentile
                           interval, p from the differences shifted to mean 0.

A difference counts as more than noise when p < 0.05 and the 95 % interval excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.stats.interval import LEVEL, SEED, Z, middle, resampled_means

RESAMPLES = 10_000
Samples = Mapping[str, Sequence[float | None]]  # problem -> value of each sample; None where there is no verdict


@dataclass(frozen=True)
class Comparison:
    """Model b against model a by one extractor of one task.

    Attributes:
        num_problems: Number of problems compared.
        num_missing: Number of problems without a verdict of either model, which are not compared.
        mean_a: Mean of model a over the problems compared.
        mean_b: Mean of model b.
        difference: ``mean_b - mean_a``; ``low`` and ``high`` are its 95 % interval.
        p_value: Two-sided p value.
        method: How interval and p value were computed, or why there are none.
    """

    task: str
    extractor: str
    num_problems: int
    num_missing: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    method: str

    @property
    def inside_noise(self) -> bool:
        """Whether such a difference is to be expected between equal models."""
        return not (self.p_value < LEVEL and not self.low <= 0 <= self.high)

    @property
    def words(self) -> str:
        """The verdict as text."""
        if math.isnan(self.p_value):
            return "not compared"
        return "inside noise" if self.inside_noise else "b is better" if self.difference > 0 else "b is worse"


def not_compared(task: str, extractor: str, num_missing: int, why: str) -> Comparison:
    """Return a placeholder for a comparison that cannot be made."""
    nan = math.nan
    return Comparison(task, extractor, 0, num_missing, nan, nan, nan, nan, nan, nan, why)


def compare_values(task: str, extractor: str, values_a: Samples, values_b: Samples) -> Comparison:
    """Compare the values of the same problems."""
    pairs = [(values_a[uid], values_b[uid]) for uid in values_a]
    whole = [(_mean(x), _mean(y)) for x, y in pairs]
    pairs_N2 = np.array([pair for pair in whole if None not in pair], dtype=np.float64).reshape(-1, 2)
    n, missing = len(pairs_N2), len(pairs) - len(pairs_N2)
    if n == 0:
        return not_compared(task, extractor, missing, "no problem has a verdict in both")
    mean_a, mean_b = pairs_N2.mean(0).tolist()
    if np.isin(pairs_N2, (0.0, 1.0)).all():
        only_a = int(((pairs_N2[:, 0] == 1) & (pairs_N2[:, 1] == 0)).sum())
        only_b = int(((pairs_N2[:, 1] == 1) & (pairs_N2[:, 0] == 0)).sum())
        low, high = paired_interval(only_a, only_b, n)
        p, method = mcnemar(only_a, only_b), f"McNemar exact: {only_a} only a, {only_b} only b"
    else:
        low, high, p = paired_bootstrap(pairs_N2[:, 1] - pairs_N2[:, 0])
        method = f"paired bootstrap, {RESAMPLES:,} resamples"
    return Comparison(task, extractor, n, missing, mean_a, mean_b, mean_b - mean_a, low, high, p, method)


def _mean(samples: Sequence[float | None]) -> float | None:
    known = [value for value in samples if value is not None]
    return sum(known) / len(known) if known and len(known) == len(samples) else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: twice the smaller tail of Binomial(only_a + only_b, 1/2), at most 1."""
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_interval(only_a: int, only_b: int, num_problems: int) -> tuple[float, float]:
    """Compute the 95 % interval of the difference of two paired proportions, b minus a.

    The adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37), which holds its level at small n
    and where the files never differ.
    """
    a, b = (only_a + 1) / (num_problems + 2), (only_b + 1) / (num_problems + 2)
    half = Z * math.sqrt((a + b - (b - a) ** 2) / (num_problems + 2))
    return max(-1.0, b - a - half), min(1.0, b - a + half)


def paired_bootstrap(differences_N: np.ndarray, seed: int = SEED) -> tuple[float, float, float]:
    """Low and high end of the 95 % interval of the mean difference, and p of a mean of 0.

    Args:
        differences_N: b minus a for each problem.
        seed: Seed of the resamples; the same files always give the same result.
    """
    if len(differences_N) < 2:
        return -math.inf, math.inf, 1.0
    means_R, mean = resampled_means(differences_N, RESAMPLES, seed), float(differences_N.mean())
    low, high = middle(means_R).tolist()
    # 1e-12: a resample equal to the data itself must count in spite of rounding.
    extreme = int((np.abs(means_R - mean) >= abs(mean) - 1e-12).sum())
    return low, high, (extreme + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected so that the chance of any false finding is at most the level (Holm 1979); nan stays nan."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected
