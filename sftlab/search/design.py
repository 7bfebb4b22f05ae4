"""The first runs of a search: the anchors, then the points that determine a quadratic surface best (D-optimal)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sftlab.search.space import Point, Space

PRIOR = 0.01
"""Prior precision of each coefficient; makes designs with fewer runs than coefficients comparable."""


def d_optimal(space: Space, given: Sequence[Point], candidates: Sequence[Point], num_points: int) -> list[Point]:
    """Choose points that, with the given ones, maximise the information about a quadratic surface.

    Bayesian D-optimality (DuMouchel and Jones 1994): the determinant of X'X with a small prior. Points are added
    greedily, then exchanged for better ones until no exchange helps (Fedorov 1972).

    Args:
        space: The search space.
        given: Points that are run anyway.
        candidates: Points to choose from.
        num_points: Number of points to choose.
    """
    pool = [point for point in candidates if point not in set(given)]
    num_points = min(num_points, len(pool))
    if not num_points:
        return []
    x_PF = _standardised(space, [*pool, *given])
    pool_PF, given_GF = x_PF[: len(pool)], x_PF[len(pool) :]
    start_FF = given_GF.T @ given_GF + PRIOR * np.eye(x_PF.shape[1])
    chosen: list[int] = []
    for _ in range(num_points):
        chosen.append(_best(pool_PF, start_FF, chosen))
    for _ in range(10):
        before = list(chosen)
        for i in range(num_points):
            others = chosen[:i] + chosen[i + 1 :]
            chosen[i] = _best(pool_PF, start_FF, others, keep=chosen[i])
        if chosen == before:
            break
    return [pool[i] for i in chosen]


def _best(pool_PF: np.ndarray, start_FF: np.ndarray, chosen: Sequence[int], keep: int | None = None) -> int:
    """Return the point that multiplies the determinant most: by 1 + x' M^-1 x."""
    taken_CF = pool_PF[list(chosen)]
    inverse_FF = np.linalg.inv(start_FF + taken_CF.T @ taken_CF)
    gain_P = np.einsum("pf,fg,pg->p", pool_PF, inverse_FF, pool_PF)
    gain_P[list(chosen)] = -np.inf
    best = int(gain_P.argmax())
    return keep if keep is not None and gain_P[keep] >= gain_P[best] * (1 - 1e-9) else best


def _standardised(space: Space, points: Sequence[Point]) -> np.ndarray:
    x_PF = space.columns(points).quadratic()
    spread_F = x_PF.std(0)
    x_PF = (x_PF - x_PF.mean(0)) / np.where(spread_F > 1e-9, spread_F, 1.0)
    return np.hstack([np.ones((len(points), 1)), x_PF])
