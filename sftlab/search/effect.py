"""Tests whether the composition changes a score at all, by permutations, assuming no form and no distribution.

The runs' compositions are shuffled among their scores. Kernel ridge regression with fixed lengths predicts each
composition from the others; if the true order is predicted no better than shuffled ones are, no effect was seen. The
hat matrix depends on the compositions alone, so a shuffle costs one product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sftlab.search.space import Point, Space

SHUFFLES = 1999
_RIDGES = (0.1, 1.0)
_LENGTHS = (0.5, 1.5)  # in units of the square root of the number of features


def effect_p(space: Space, points: Sequence[Point], values: Sequence[float], seed: int = 0) -> float:
    """Compute the p value of no effect of the composition (Good 2005, chapter 3); nan with too few compositions."""
    group_of = {point: i for i, point in enumerate(dict.fromkeys(points))}
    if len(group_of) < 4:
        return float("nan")
    x_RF = space.columns(points).rooted()
    group_R = np.array([group_of[point] for point in points])
    value_R = np.array(values, dtype=float)
    random = np.random.default_rng(seed)
    order_BR = np.array([np.arange(len(value_R)), *(random.permutation(len(value_R)) for _ in range(SHUFFLES))])
    shuffled_BR = value_R[order_BR]
    squared_RR = ((x_RF[:, None] - x_RF[None]) ** 2).sum(-1)
    errors = []
    for length in _LENGTHS:
        kernel_RR = np.exp(-squared_RR / (2 * length**2 * x_RF.shape[1] / 4))
        for ridge in _RIDGES:
            errors.append(_left_out_error(kernel_RR, ridge, group_R, shuffled_BR))
    # Each setting ranks the shuffles; the statistic is a shuffle's best rank over the settings.
    rank_EB = np.array([error_B.argsort().argsort() for error_B in errors])
    best_B = rank_EB.min(0)
    return float((best_B <= best_B[0]).sum() / len(best_B))


def _left_out_error(kernel_RR: np.ndarray, ridge: float, group_R: np.ndarray, value_BR: np.ndarray) -> np.ndarray:
    """Compute the sum of squared leave-one-composition-out errors of every shuffle [B]."""
    error_B = np.zeros(len(value_BR))
    for group in np.unique(group_R):
        out = group_R == group
        inner = kernel_RR[np.ix_(~out, ~out)]
        weight_OR = kernel_RR[np.ix_(out, ~out)] @ np.linalg.inv(inner + ridge * np.eye(len(inner)))
        mean_B1 = value_BR[:, ~out].mean(1, keepdims=True)
        predicted_BO = mean_B1 + (value_BR[:, ~out] - mean_B1) @ weight_OR.T
        error_B += ((value_BR[:, out] - predicted_BO) ** 2).sum(1)
    return error_B
