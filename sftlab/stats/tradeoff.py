"""What to choose: where mixing turns from gain to conflict, and which replay fraction k is best for whom."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sftlab.stats.fits import RESAMPLES, isotonic
from sftlab.stats.interval import Estimate, middle, normal_draws


@dataclass(frozen=True)
class Crossover:
    """The fraction at which mixing stops helping.

    Attributes:
        fraction: Fraction of each ability's data; 0 if mixing hurts from the smallest fraction tried, infinite if it
            helps up to the largest. The ends of its interval can be 0 and infinite too.
        share_bracketed: Share of the resamples whose crossover lies between the fractions tried.
    """

    fraction: Estimate
    share_bracketed: float


def crossover(fraction_P: np.ndarray, gain_P: np.ndarray, error_P: np.ndarray) -> Crossover:
    """Find where a gain turns into a loss as fractions grow.

    The gains (mixed minus single) are replaced by the nearest sequence that never rises, since noisy gains can cross 0
    several times; then 0 is interpolated linearly in log2 of the fraction. The interval is a parametric bootstrap over
    the gains.

    Args:
        fraction_P: Ascending and positive.
        gain_P: Mixed minus single, higher is better.
        error_P: Standard error of each; nan if unknown, which gives no interval.
    """
    known = bool(np.isfinite(error_P).all() and (error_P > 0).all())
    weight_P = error_P**-2.0 if known else np.ones(len(gain_P))
    log_P = np.log2(fraction_P)
    found = float(np.exp2(_crossing(log_P, gain_P[None], weight_P))[0])
    if not known:
        return Crossover(Estimate(found), math.nan)
    draws_BP = normal_draws(gain_P, error_P, RESAMPLES)
    crossings_B = np.exp2(_crossing(log_P, draws_BP, weight_P))
    low, high = middle(crossings_B, is_ordered=True).tolist()
    bracketed_B = np.isfinite(crossings_B) & (crossings_B > 0)
    return Crossover(Estimate(found, low, high), float(bracketed_B.mean()))


def _crossing(log_P: np.ndarray, gain_BP: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """Return log2 of the crossover for each row; minus or plus infinity if the gain has one sign."""
    falling_BP = -isotonic(-gain_BP, weight_P)
    num = falling_BP.shape[1]
    num_above_B = (falling_BP > 0).sum(1)  # it never rises, so positive gains come first
    first_below_B = num - (falling_BP < 0).sum(1)
    left_B, right_B = np.clip(num_above_B - 1, 0, None), np.clip(first_below_B, None, num - 1)
    rows_B = np.arange(len(gain_BP))
    y0_B, y1_B = falling_BP[rows_B, left_B], falling_BP[rows_B, right_B]
    span_B = np.where(y0_B == y1_B, 1.0, y0_B - y1_B)
    between_B = log_P[left_B] + (log_P[right_B] - log_P[left_B]) * y0_B / span_B
    return np.where(first_below_B == num, math.inf, np.where(num_above_B == 0, -math.inf, between_B))


def pareto_front(scores_NM: np.ndarray) -> np.ndarray:
    """Return which of N choices no other dominates: as good by all M measures and better by one. Higher is better.

    A choice with a nan is never on the front.
    """
    no_worse_NN = (scores_NM[None] >= scores_NM[:, None]).all(2)
    better_NN = np.any(scores_NM[None] > scores_NM[:, None], axis=2)
    return ~np.any(no_worse_NN & better_NN, axis=1) & ~np.isnan(scores_NM).any(axis=1)


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of K values for a user's weights.

    Attributes:
        utility_K: Weighted mean of the abilities' scores, each divided by its best.
        share_best_K: Share of the resamples in which each is the best: how far the choice is noise. Ties split the
            count of a resample.
    """

    utility_K: np.ndarray
    share_best_K: np.ndarray

    @property
    def index(self) -> int:
        """Index of the best."""
        return int(np.argmax(self.utility_K))

    @property
    def is_tie(self) -> bool:
        """Whether all are equal, for example if every score is 0: then there is no best."""
        return len(self.utility_K) > 1 and float(np.ptp(self.utility_K)) < 1e-12


def best_choice(scores_KA: np.ndarray, errors_KA: np.ndarray, weight_A: np.ndarray) -> Choice:
    """Return the choice with the highest weighted mean.

    Args:
        scores_KA: Scores between 0 and 1 of each choice and ability.
        errors_KA: Their standard errors; unknown ones count as 0.
        weight_A: Not negative, not all 0.
    """
    share_A = weight_A / weight_A.sum()
    draws_BKA = np.clip(normal_draws(scores_KA, np.nan_to_num(errors_KA), RESAMPLES), 0, 1)
    utility_BK = draws_BKA @ share_A
    first_BK = utility_BK >= utility_BK.max(1, keepdims=True) - 1e-12
    return Choice(scores_KA @ share_A, (first_BK / first_BK.sum(1, keepdims=True)).mean(0))
