"""Response surfaces: from compositions to one ability's score, with the uncertainty of the mean.

    mixing law   c + a exp(t . x)                      (Ye et al., arXiv 2403.16952, the form common to its laws)
    quadratic    in logarithms of shares, Bayesian ridge
    process      Gaussian process, Matern 5/2, a length for each feature, lengths and noise with broad priors

Which form is used is settled by its error on compositions that it was not fitted to. The same errors say whether its
intervals are too narrow, and by how much they are widened; and where another form fits what is left out nearly as well
and says something else, that difference is uncertainty too.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sftlab.search.space import Columns, Point, Space

MOST_FOLDS = 8
LEAST_WEIGHT = 0.02  # other forms less likely than this, relative to the chosen one, are ignored


@dataclass(frozen=True, eq=False)
class Fit:
    """One form fitted to the runs of one ability.

    Attributes:
        noise: Standard deviation of one run around the surface.
    """

    noise: float

    def predict(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Predict the mean [P] and the covariance of the mean [P, P] at points."""
        raise NotImplementedError


class Form(ABC):
    """A kind of surface."""

    name: str

    @abstractmethod
    def fit(self, columns: Columns, value_R: np.ndarray, near: Fit | None = None) -> Fit:
        """Fit the runs, starting at ``near`` if it is given."""


@dataclass(frozen=True, eq=False)
class _Linear(Fit):
    features: Any
    mean_F: np.ndarray
    scale_F: np.ndarray
    model: Any
    num_runs: int

    def predict(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        x_PF = (self.features(columns) - self.mean_F) / self.scale_F
        cov_PP = x_PF @ self.model.sigma_ @ x_PF.T + self.noise**2 / self.num_runs
        return self.model.predict(x_PF), cov_PP


class Quadratic(Form):
    """Squares and products of logarithms of shares and of the other factors."""

    name = "quadratic"

    def fit(self, columns: Columns, value_R: np.ndarray, near: Fit | None = None) -> Fit:
        """Fit by Bayesian ridge regression (MacKay 1992), which learns the coefficients' prior scale from the runs."""
        from sklearn.linear_model import BayesianRidge

        x_RF = columns.quadratic()
        mean_F, scale_F = x_RF.mean(0), x_RF.std(0)
        scale_F = np.where(scale_F > 1e-9, scale_F, 1.0)
        size = max(float(value_R.std()), 1e-9)
        model = BayesianRidge(alpha_init=4 / size**2, lambda_init=10 / size**2, lambda_1=0, lambda_2=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit((x_RF - mean_F) / scale_F, value_R)
        return _Linear(float(model.alpha_) ** -0.5, Columns.quadratic, mean_F, scale_F, model, len(value_R))


@dataclass(frozen=True, eq=False)
class _Law(Fit):
    theta: np.ndarray
    cov_TT: np.ndarray

    def predict(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        x_PF = columns.plain()
        jacobian_PT = _law_jacobian(self.theta, x_PF)
        return _law(self.theta, x_PF), jacobian_PT @ self.cov_TT @ jacobian_PT.T


def _law(theta: np.ndarray, x_PF: np.ndarray) -> np.ndarray:
    return theta[0] + theta[1] * np.exp(np.clip(x_PF @ theta[2:], -20, 20))


def _law_jacobian(theta: np.ndarray, x_PF: np.ndarray) -> np.ndarray:
    grown_P = np.exp(np.clip(x_PF @ theta[2:], -20, 20))
    return np.column_stack([np.ones(len(x_PF)), grown_P, theta[1] * grown_P[:, None] * x_PF])


class MixingLaw(Form):
    """An exponential of a linear form; least squares with a weak prior on the exponents."""

    name = "mixing law"
    prior = 0.02

    def fit(self, columns: Columns, value_R: np.ndarray, near: Fit | None = None) -> Fit:
        """Fit from several starts and keep the best."""
        from scipy.optimize import least_squares

        x_RF = columns.plain()
        shift, size = float(value_R.mean()), max(float(value_R.std()), 1e-9)
        y_R, num = (value_R - shift) / size, 2 + x_RF.shape[1]
        weight_T = np.full(num, self.prior)
        weight_T[:2] = self.prior / 10

        def misfit(theta: np.ndarray) -> np.ndarray:
            return np.concatenate([_law(theta, x_RF) - y_R, weight_T * theta])

        def slopes(theta: np.ndarray) -> np.ndarray:
            return np.vstack([_law_jacobian(theta, x_RF), np.diag(weight_T)])

        random = np.random.default_rng(0)
        starts = [np.concatenate([[0.0, sign], random.normal(size=num - 2)]) for sign in (0.5, -0.5)]
        if isinstance(near, _Law):
            starts = [np.concatenate([[(near.theta[0] - shift) / size, near.theta[1] / size], near.theta[2:]])]
        found = [least_squares(misfit, start, jac=slopes, max_nfev=40) for start in starts]
        theta = min(found, key=lambda one: one.cost).x
        jacobian_RT = _law_jacobian(theta, x_RF)
        inverse_TT = np.linalg.inv(jacobian_RT.T @ jacobian_RT + np.diag(weight_T**2))
        used = float(np.trace(jacobian_RT @ inverse_TT @ jacobian_RT.T))
        noise = math.sqrt(float(((_law(theta, x_RF) - y_R) ** 2).sum()) / max(len(y_R) - used, 1.0))
        theta = np.concatenate([[shift + size * theta[0], size * theta[1]], theta[2:]])
        to_units_T = np.concatenate([[size, size], np.ones(num - 2)])
        return _Law(noise * size, theta, noise**2 * inverse_TT * np.outer(to_units_T, to_units_T))


@dataclass(frozen=True, eq=False)
class _Process(Fit):
    model: Any
    shift: float
    size: float

    def predict(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        mean_P, cov_PP = self.model.predict(columns.rooted(), return_cov=True)
        # scikit-learn adds the noise of a run to the covariance; the mean has none.
        cov_PP = cov_PP - np.eye(len(mean_P)) * self.model.kernel_.k2.noise_level
        return self.shift + self.size * mean_P, cov_PP * self.size**2


class Process(Form):
    """A Gaussian process whose lengths, size and noise have broad priors (MAP estimates are used)."""

    name = "Gaussian process"

    def fit(self, columns: Columns, value_R: np.ndarray, near: Fit | None = None) -> Fit:
        """Find the MAP lengths and noise; the mean is unknown too."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        x_RF = columns.rooted()
        shift, size = float(value_R.mean()), max(float(value_R.std()), 1e-9)
        lengths = np.full(x_RF.shape[1], 0.7 * math.sqrt(x_RF.shape[1]))
        unknown_mean = ConstantKernel(1.0, "fixed")
        signal = ConstantKernel(1.0, (1e-3, 1e2)) * Matern(lengths, (0.05, 50.0), nu=2.5)
        kernel = unknown_mean + signal + WhiteKernel(0.2, (1e-4, 4.0))
        if isinstance(near, _Process):
            kernel = kernel.clone_with_theta(near.model.kernel_.theta)
        # In the order of scikit-learn's theta: size of the signal, lengths, noise; all logarithms.
        middle_T = np.log(np.concatenate([[1.0], lengths, [0.1]]))
        width_T = np.concatenate([[1.0], np.full(len(lengths), 0.8), [1.5]])

        def most_probable(objective: Any, start_T: np.ndarray, bounds: Any) -> tuple[np.ndarray, float]:
            from scipy.optimize import minimize

            def with_prior(theta: np.ndarray) -> tuple[float, np.ndarray]:
                value, slope = objective(theta, eval_gradient=True)
                off = (theta - middle_T) / width_T
                return value + 0.5 * float(off @ off), slope + off / width_T

            done = minimize(with_prior, start_T, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 60})
            return done.x, float(done.fun)

        model = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=most_probable)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x_RF, (value_R - shift) / size)
        return _Process(size * float(model.kernel_.k2.noise_level) ** 0.5, model, shift, size)


FORMS: tuple[Form, ...] = (MixingLaw(), Quadratic(), Process())


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of one ability.

    Attributes:
        space: The search space.
        form: Name of the chosen form.
        fit: The chosen form, fitted to all runs.
        others: The other forms, each with its likelihood relative to the chosen one.
        held_out: Root mean square error of each form on left-out compositions; ``mean`` is that of predicting the mean
            of the others.
        widened: Factor by which standard errors are multiplied, at least 1.
        noise: Standard deviation of one run, between seeds.
    """

    space: Space
    form: str
    fit: Fit
    others: list[tuple[float, Fit]]
    held_out: dict[str, float]
    widened: float
    noise: float
    points: list[Point] = field(default_factory=list)

    def predict(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Predict the mean [P] and the covariance of the mean [P, P] at points."""
        columns = self.space.columns(points)
        mean_P, cov_PP = self.fit.predict(columns)
        cov_PP = cov_PP * self.widened**2
        for weight, other in self.others:
            apart_P = other.predict(columns)[0] - mean_P
            cov_PP = cov_PP + weight * np.outer(apart_P, apart_P)
        return mean_P, cov_PP


def fit_surface(space: Space, points: Sequence[Point], values: Sequence[float]) -> Surface:
    """Fit the surface of one ability, in the form that best predicts left-out compositions.

    Args:
        space: The search space.
        points: The composition of each run; runs may share one.
        values: The scores of the runs.
    """
    columns, value_R = space.columns(points), np.array(values, dtype=float)
    group_R = _folds(points)
    errors, stretch = dict[str, float](), dict[str, float]()
    fits = {form.name: form.fit(columns, value_R) for form in FORMS}
    for form in FORMS:
        error_R, z_R = _left_out(form, columns, value_R, group_R, fits[form.name])
        errors[form.name] = float(np.sqrt((error_R**2).mean()))
        stretch[form.name] = float(np.sqrt((z_R**2).mean()))
    chosen = min(FORMS, key=lambda form: (math.isnan(errors[form.name]), errors[form.name]))
    fit = fits[chosen.name]
    others = [(_likelihood(errors, form.name, chosen.name, len(value_R)), form) for form in FORMS if form is not chosen]
    fitted = [(weight, fits[form.name]) for weight, form in others if weight > LEAST_WEIGHT]
    noise = _noise(points, value_R, fit.noise)
    errors["mean"] = float(np.sqrt((_left_out_of_mean(value_R, group_R) ** 2).mean()))
    return Surface(space, chosen.name, fit, fitted, errors, max(1.0, stretch[chosen.name]), noise, list(points))


def _likelihood(errors: dict[str, float], name: str, chosen: str, num_runs: int) -> float:
    """Compute the likelihood of a form's errors relative to that of the chosen one's, both normal (at most 1)."""
    return float((errors[chosen] / max(errors[name], 1e-12)) ** (num_runs / 2))


def _folds(points: Sequence[Point]) -> np.ndarray:
    """Return the fold of each run; runs of one composition are left out together."""
    different = {point: i for i, point in enumerate(dict.fromkeys(points))}
    return np.array([different[point] % MOST_FOLDS for point in points])


def _left_out(
    form: Form, columns: Columns, value_R: np.ndarray, group_R: np.ndarray, near: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the error of each run with its composition left out, and the same in predicted standard deviations."""
    error_R, told_R = np.empty(len(value_R)), np.empty(len(value_R))
    for group in np.unique(group_R):
        out = group_R == group
        fit = form.fit(_rows(columns, ~out), value_R[~out], near)
        mean_P, cov_PP = fit.predict(_rows(columns, out))
        error_R[out] = value_R[out] - mean_P
        # If a fold's runs are all alike, such as all 0, no form can learn the spread of runs; use that of all runs.
        noise = fit.noise if np.ptp(value_R[~out]) > 0 else float(value_R.std())
        told_R[out] = np.sqrt(np.maximum(np.diag(cov_PP), 0) + noise**2)
    return error_R, error_R / np.maximum(told_R, 1e-12)


def _left_out_of_mean(value_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    return np.array([v - value_R[group_R != g].mean() for v, g in zip(value_R, group_R, strict=True)])


def _rows(columns: Columns, kept_R: np.ndarray) -> Columns:
    return Columns(columns.share_PS[kept_R], columns.number_PN[kept_R], columns.choice_PK[kept_R])


def _noise(points: Sequence[Point], value_R: np.ndarray, fitted: float) -> float:
    """Estimate the spread of runs of one composition, pooled with the surface's residuals (few degrees of freedom)."""
    of_point: dict[Point, list[float]] = {}
    for point, value in zip(points, value_R.tolist(), strict=True):
        of_point.setdefault(point, []).append(value)
    freedom = sum(len(mine) - 1 for mine in of_point.values())
    squares = sum(float(np.var(mine)) * len(mine) for mine in of_point.values())
    weight = max(1.0, len(of_point) / 4)
    return math.sqrt((squares + weight * fitted**2) / (freedom + weight))
