"""How a score grows with the fraction of the data: fits, their uncertainty, and a verdict in words.

Two forms are fitted to the means of a curve, by least squares without weights (the error of a rate near 0 or 1 is so
small that weights would let one saturated point decide):

    log-linear   score = a + b log2(fraction)            a: score at all the data, b: gain per doubling
    power law    loss  = E + A fraction^-alpha           E: what no amount of data removes, A: what all of it leaves

The first is how Yuan et al. 2023 (arXiv 2308.01825) describe accuracy, the second how Hestness et al. 2017
(arXiv 1712.00409) describe losses and error rates, and Zhang et al. 2024 (arXiv 2402.17193) fine-tuning. A score is
turned into a loss by subtracting it from the best possible score. E and A are not negative, alpha is in ALPHA_RANGE.

Intervals are a parametric bootstrap: every mean is drawn anew from a normal distribution with its standard error, the
form is fitted again, and the middle 95 % of the fits is the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sftlab.stats.interval import LEVEL, SEED, Estimate, middle, normal_draws

RESAMPLES = 2000  # for intervals
NUM_NULL = 5_000  # for p values, whose tails need more
ALPHA_RANGE = (0.01, 4.0)


@dataclass(frozen=True, eq=False)
class Curve:
    """Means at growing fractions.

    Attributes:
        fraction_P: Ascending and positive.
        mean_P: Mean score or loss at each.
        error_P: Standard error of each mean, positive; nan where unknown.
        best: The highest possible score; None for a loss, where lower is better.

    Raises:
        ValueError: The arrays do not fit, or fractions do not ascend from above 0.
    """

    fraction_P: np.ndarray
    mean_P: np.ndarray
    error_P: np.ndarray
    best: float | None = 1.0

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        if not self.fraction_P.shape == self.mean_P.shape == self.error_P.shape or self.fraction_P.ndim != 1:
            raise ValueError("a curve needs as many means and errors as fractions")
        if len(self) and (self.fraction_P[0] <= 0 or (np.diff(self.fraction_P) <= 0).any()):
            raise ValueError(f"the fractions of a curve must be positive and ascending, not {self.fraction_P.tolist()}")

    def __len__(self) -> int:
        """Number of points."""
        return len(self.fraction_P)

    @property
    def has_errors(self) -> bool:
        """Whether the error of every point is known."""
        return bool(np.isfinite(self.error_P).all() and (self.error_P > 0).all())

    def up(self, values: np.ndarray) -> np.ndarray:
        """Return values with their sign set so that higher is better."""
        return values if self.best is not None else -values

    def as_loss(self, values: np.ndarray) -> np.ndarray:
        """Return scores as a distance from the best; losses as they are. The map is its own inverse."""
        return values if self.best is None else self.best - values

    def draws(self, seed: int = SEED) -> np.ndarray:
        """Resampled means [RESAMPLES, points], inside the range that scores or losses can have."""
        draws_BP = normal_draws(self.mean_P, self.error_P, RESAMPLES, seed)
        return np.clip(draws_BP, 0.0, math.inf if self.best is None else self.best)


@dataclass(frozen=True)
class Fit:
    """One form fitted to one curve.

    Attributes:
        form: ``log-linear`` or ``power law``.
        parameters: ``a``, ``b`` or ``E``, ``A``, ``alpha``; in units of the score (loss), b per doubling of the data.
        rmse: Root of the mean squared residual over the points.
        held_out: Prediction minus measurement at the largest fraction, of a fit that never saw it; nan where too few
            points are left for one.
    """

    form: str
    parameters: dict[str, Estimate]
    rmse: float
    held_out: float

    def predict(self, curve: Curve, fractions: np.ndarray) -> np.ndarray:
        """Predict the score (or loss) at fractions from the fitted values."""
        values = np.array([[self.parameters[name].value] for name in self.parameters])
        return _FORMS[self.form].predict(values, np.log2(fractions), curve)[0]


@dataclass(frozen=True)
class Shape:
    """What a curve looks like against its noise.

    Attributes:
        verdict: ``irregular``, ``log-linear``, ``monotone``, ``flat`` or ``undecided``, see ``shape_of``.
        p_monotone: How often a rising curve shows dips like these.
        p_line: How often a log-linear curve shows deviations like these.
        slope: b with its interval, higher is better (minus the slope of a loss).
    """

    verdict: str
    p_monotone: float
    p_line: float
    slope: Estimate


@dataclass(frozen=True)
class _Form:
    names: tuple[str, ...]
    fit: Callable[[np.ndarray, np.ndarray, Curve], np.ndarray]  # log2 of the fractions, values [B, P] -> [names, B]
    predict: Callable[[np.ndarray, np.ndarray, Curve], np.ndarray]  # parameters [names, B], log2 -> values [B, P]


def _fit_line(log_P: np.ndarray, values_BP: np.ndarray, curve: Curve) -> np.ndarray:
    centred_P = log_P - log_P.mean()
    slope_B = values_BP @ centred_P / (centred_P @ centred_P)
    return np.stack([values_BP.mean(1) - slope_B * log_P.mean(), slope_B])


def _predict_line(parameters: np.ndarray, log_P: np.ndarray, curve: Curve) -> np.ndarray:
    a_B, b_B = parameters
    return a_B[:, None] + b_B[:, None] * log_P


def _fit_power(log_P: np.ndarray, values_BP: np.ndarray, curve: Curve) -> np.ndarray:
    """For a given alpha the rest is linear, so search a grid over alpha that narrows around its best point."""
    loss_BP = curve.as_loss(values_BP)
    rows_B = np.arange(len(loss_BP))
    least, most = (math.log(end) for end in ALPHA_RANGE)
    grid_BG = np.linspace(least, most, 61)[None]  # the same for all rows, until it narrows
    for _ in range(4):
        offset_BG, scale_BG, squares_BG = _offset_and_scale(np.exp(grid_BG), log_P, loss_BP)
        best_B = squares_BG.argmin(1)
        centre_B = np.broadcast_to(grid_BG, squares_BG.shape)[rows_B, best_B]
        found = np.stack([offset_BG[rows_B, best_B], scale_BG[rows_B, best_B], np.exp(centre_B)])
        step = grid_BG[0, 1] - grid_BG[0, 0]
        grid_BG = np.clip(centre_B[:, None] + np.linspace(-step, step, 13), least, most)
    return found


def _offset_and_scale(alpha_BG: np.ndarray, log_P: np.ndarray, loss_BP: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fit E and A by non-negative least squares, with the sum of squares, for every alpha."""
    z_BGP = np.exp2(-alpha_BG[:, :, None] * log_P)
    mean_BG, num = z_BGP.mean(2), len(log_P)
    loss_B1P = loss_BP[:, None, :]
    product_BG = (z_BGP @ loss_BP[:, :, None])[:, :, 0]
    square_BG = np.einsum("bgp,bgp->bg", z_BGP, z_BGP)
    loss_B1 = loss_BP.mean(1)[:, None]
    scale_BG = np.maximum(0, (product_BG - num * mean_BG * loss_B1) / (square_BG - num * mean_BG**2))
    offset_BG = loss_B1 - scale_BG * mean_BG
    without_BG = np.maximum(0, product_BG / square_BG)  # the best scale if the offset is fixed at 0
    scale_BG = np.where(offset_BG < 0, without_BG, scale_BG)
    offset_BG = np.maximum(0, offset_BG)
    residual_BGP = offset_BG[:, :, None] + scale_BG[:, :, None] * z_BGP - loss_B1P
    return offset_BG, scale_BG, np.einsum("bgp,bgp->bg", residual_BGP, residual_BGP)


def _predict_power(parameters: np.ndarray, log_P: np.ndarray, curve: Curve) -> np.ndarray:
    offset_B, scale_B, alpha_B = parameters
    return curve.as_loss(offset_B[:, None] + scale_B[:, None] * np.exp2(-alpha_B[:, None] * log_P))


_FORMS = {
    "log-linear": _Form(("a", "b"), _fit_line, _predict_line),
    "power law": _Form(("E", "A", "alpha"), _fit_power, _predict_power),
}


def fits_of(curve: Curve) -> list[Fit]:
    """Fit the forms for which the curve has enough points: one more than the form has parameters."""
    return [_fit(form, curve) for form in _FORMS if len(curve) > len(_FORMS[form].names)]


def _fit(name: str, curve: Curve) -> Fit:
    form, log_P = _FORMS[name], np.log2(curve.fraction_P)
    mean_1P = curve.mean_P[None]
    found = form.fit(log_P, mean_1P, curve)
    ends = np.full((2, len(form.names)), math.nan)
    if curve.has_errors:
        ends = middle(form.fit(log_P, curve.draws(), curve), axis=1)
    parameters = {
        key: Estimate(float(found[i, 0]), float(ends[0, i]), float(ends[1, i])) for i, key in enumerate(form.names)
    }
    rmse = float(np.sqrt(np.mean((form.predict(found, log_P, curve) - mean_1P) ** 2)))
    held_out = math.nan
    if len(curve) - 1 > len(form.names):
        shorter = form.fit(log_P[:-1], mean_1P[:, :-1], curve)
        held_out = float(form.predict(shorter, log_P[-1:], curve)[0, 0] - curve.mean_P[-1])
    return Fit(name, parameters, rmse, held_out)


def isotonic(values_BP: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """Compute the nearest curve that never falls, by weighted least squares, for each row.

    By the max-min formula (Robertson, Wright and Dykstra 1988, section 1.4): the value at i is the largest over starts
    s <= i of the smallest over ends t >= i of the mean from s to t.
    """
    num = values_BP.shape[1]
    sums = np.concatenate([np.zeros((len(values_BP), 1)), np.cumsum(values_BP * weight_P, 1)], 1)
    weights = np.concatenate([[0.0], np.cumsum(weight_P)])
    result = np.empty_like(values_BP)
    for i in range(num):
        starts = []
        for s in range(i + 1):
            ends = np.arange(i + 1, num + 1)
            starts.append(((sums[:, ends] - sums[:, [s]]) / (weights[ends] - weights[s])).min(1))
        result[:, i] = np.max(starts, axis=0)
    return result


def p_monotone(curve: Curve) -> float:
    """P value of "the true curve never falls"; nan without errors.

    The statistic is the squared distance, in standard errors, from the nearest curve that never falls. Its distribution
    is simulated for a constant curve, for which it is largest among all rising ones (Robertson, Wright and Dykstra
    1988, section 2.3), so the level holds whatever the true curve.
    """
    if not curve.has_errors or len(curve) < 2:
        return math.nan
    weight_P = curve.error_P**-2.0
    null_BP = np.random.default_rng(SEED).normal(size=(NUM_NULL, len(curve))) * curve.error_P
    observed, null_B = (
        (weight_P * (values - isotonic(values, weight_P)) ** 2).sum(1)
        for values in (curve.up(curve.mean_P)[None], null_BP)
    )
    return float((1 + (null_B >= observed[0] - 1e-12).sum()) / (NUM_NULL + 1))


def p_line(curve: Curve) -> float:
    """P value of "the true curve is log-linear": chi square of the weighted residuals; nan if undecidable.

    The line is fitted with weights here, as the test needs; the null distribution is simulated.
    """
    if not curve.has_errors or len(curve) < 3:
        return math.nan
    design_P2 = np.stack([np.ones(len(curve)), np.log2(curve.fraction_P)], 1) / curve.error_P[:, None]
    onto_PP = design_P2 @ np.linalg.pinv(design_P2)
    null_BP = np.random.default_rng(SEED).normal(size=(NUM_NULL, len(curve)))
    observed_P = curve.mean_P / curve.error_P
    observed = ((observed_P - onto_PP @ observed_P) ** 2).sum()
    null_B = ((null_BP - null_BP @ onto_PP.T) ** 2).sum(1)
    return float((1 + (null_B >= observed - 1e-12).sum()) / (NUM_NULL + 1))


def shape_of(curve: Curve) -> Shape:
    """Return the verdict on a curve: the first rule that holds.

    undecided    fewer than 3 points, or no standard errors
    irregular    it falls somewhere by more than noise explains: p_monotone < 0.05
    flat         the interval of the slope holds 0
    log-linear   it rises, and a line in log2 of the fraction is inside noise: p_line >= 0.05
    monotone     it rises, and not along such a line
    """
    if len(curve) < 3 or not curve.has_errors:
        return Shape("undecided", math.nan, math.nan, Estimate(math.nan))
    log_P = np.log2(curve.fraction_P)
    slope = float(curve.up(_fit_line(log_P, curve.mean_P[None], curve)[1])[0])
    low, high = middle(curve.up(_fit_line(log_P, curve.draws(), curve)[1])).tolist()
    monotone, line = p_monotone(curve), p_line(curve)
    if monotone < LEVEL:
        verdict = "irregular"
    elif low <= 0:
        verdict = "flat"
    else:
        verdict = "log-linear" if line >= LEVEL else "monotone"
    return Shape(verdict, monotone, line, Estimate(slope, low, high))
