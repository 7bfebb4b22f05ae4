"""Whether a proxy ranks like the real measure: Spearman's correlation and the regret of trusting the proxy."""

from __future__ import annotations

import math

import numpy as np

from sftlab.stats.interval import SEED, Estimate, middle

RESAMPLES = 2000


def rank_correlation(proxy_N: np.ndarray, real_N: np.ndarray) -> Estimate:
    """Compute Spearman's rank correlation with a bootstrap interval over the pairs (Efron and Tibshirani 1993, ch. 13).

    Resamples in which one side is constant have no correlation and are left out. nan with fewer than three pairs or
    a constant side.
    """
    if len(proxy_N) < 3 or np.ptp(proxy_N) == 0 or np.ptp(real_N) == 0:
        return Estimate(math.nan)
    value = float(_correlations(proxy_N[None], real_N[None])[0])
    picked_BN = np.random.default_rng(SEED).integers(len(proxy_N), size=(RESAMPLES, len(proxy_N)))
    drawn_B = _correlations(proxy_N[picked_BN], real_N[picked_BN])
    low, high = middle(drawn_B[np.isfinite(drawn_B)]).tolist()
    return Estimate(value, low, high)


def regret(proxy_N: np.ndarray, real_N: np.ndarray) -> float:
    """Return what is lost by taking what the proxy ranks first instead of the best (at least 0)."""
    return float(real_N.max() - real_N[int(proxy_N.argmax())])


def _correlations(x_BN: np.ndarray, y_BN: np.ndarray) -> np.ndarray:
    """Correlate each row; ties have their mean rank."""
    from scipy.stats import rankdata

    ranks = [rankdata(v_BN, axis=1) for v_BN in (x_BN, y_BN)]
    a_BN, b_BN = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    size_B = np.sqrt((a_BN**2).sum(1) * (b_BN**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size_B > 0, (a_BN * b_BN).sum(1) / size_B, np.nan)
