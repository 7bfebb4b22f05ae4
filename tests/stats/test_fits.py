"""Fits, tests of shape and choices against known curves, brute force and independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.stats.fits import ALPHA_RANGE, Curve, Fit, fits_of, isotonic, p_line, p_monotone, shape_of
from sftlab.stats.tradeoff import best_choice, crossover, pareto_front

FRACTIONS = np.array([1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0])
LOG = np.log2(FRACTIONS)


def curve(means: np.ndarray, error: float = 0.01, best: float | None = 1.0) -> Curve:
    return Curve(FRACTIONS[-len(means) :], np.asarray(means, float), np.full(len(means), error), best)


def fitted(found: Curve) -> tuple[Fit, Fit]:
    line, power = fits_of(found)
    return line, power


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 0.9), st.floats(0.001, 0.03))
def test_a_log_linear_curve_is_recovered(at_all: float, per_doubling: float) -> None:
    line, _ = fitted(curve(at_all + per_doubling * LOG))
    assert line.parameters["a"].value == pytest.approx(at_all) and line.rmse < 1e-9
    assert line.parameters["b"].value == pytest.approx(per_doubling) and line.held_out == pytest.approx(0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.4), st.floats(0.02, 0.1), st.floats(0.08, 0.4), st.booleans())
def test_a_power_law_is_recovered(offset: float, scale: float, alpha: float, is_loss: bool) -> None:
    loss = offset + scale * FRACTIONS**-alpha
    _, power = fitted(curve(loss, best=None) if is_loss else curve(1 - loss))
    assert power.parameters["E"].value == pytest.approx(offset, abs=2e-3)
    assert power.parameters["A"].value == pytest.approx(scale, abs=2e-3)
    assert power.parameters["alpha"].value == pytest.approx(alpha, rel=0.02)
    assert power.held_out == pytest.approx(0, abs=2e-3) and power.rmse < 1e-4


def test_a_rating_has_its_own_scale() -> None:
    _, power = fitted(curve(10 - (2 + 1.5 * FRACTIONS**-0.25), error=0.1, best=10.0))
    assert [power.parameters[k].value for k in ("E", "A", "alpha")] == pytest.approx([2, 1.5, 0.25], rel=0.01)


def test_the_power_law_against_scipy() -> None:
    from scipy.optimize import curve_fit

    loss = np.array([0.9, 0.62, 0.5, 0.41, 0.38])
    _, power = fitted(curve(loss, best=None))
    reference, _ = curve_fit(
        lambda x, e, a, alpha: e + a * x**-alpha, FRACTIONS, loss, (0.3, 0.1, 0.3), bounds=(0, [9, 9, ALPHA_RANGE[1]])
    )
    assert [e.value for e in power.parameters.values()] == pytest.approx(reference, rel=1e-3)


def test_bootstrap_intervals_cover_the_truth() -> None:
    generator, inside = np.random.default_rng(1), np.zeros(2)
    for _ in range(60):
        noise = generator.normal(size=5) * 0.02
        line, _ = fitted(curve(0.8 + 0.05 * LOG + noise, 0.02))
        _, power = fitted(curve(0.8 - 0.1 * FRACTIONS**-0.3 + noise, 0.02))
        inside += [
            e.low <= truth <= e.high for e, truth in ((line.parameters["b"], 0.05), (power.parameters["A"], 0.1))
        ]
    assert (inside >= 52).all(), inside  # 95 % of 60 is 57; a form that is not linear may cover a little less


def test_too_few_points_are_not_fitted() -> None:
    assert [fit.form for fit in fits_of(curve(np.array([0.1, 0.2])))] == []
    (line,) = fits_of(curve(np.array([0.1, 0.2, 0.3])))
    assert line.form == "log-linear" and math.isnan(line.held_out)
    assert shape_of(curve(np.array([0.1, 0.2]))).verdict == "undecided"
    unknown = Curve(FRACTIONS, 0.8 + 0.05 * LOG, np.full(5, math.nan))
    assert shape_of(unknown).verdict == "undecided" and math.isnan(p_line(unknown))
    assert math.isnan(fits_of(unknown)[0].parameters["a"].low)


@pytest.mark.parametrize("fractions", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.25], [0.5, 0.5, 1.0]])
def test_fractions_must_ascend(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="must be positive and ascending"):
        Curve(np.array(fractions), np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="as many means"):
        Curve(np.array(fractions), np.zeros(2), np.ones(3))


@settings(deadline=None)  # the first example imports scikit-learn
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9)), min_size=1, max_size=8))
def test_isotonic_against_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    from sklearn.isotonic import IsotonicRegression

    values, weights = np.array(pairs).T
    reference = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)
    assert isotonic(values[None], weights)[0] == pytest.approx(reference, abs=1e-9)


def test_tests_of_shape_hold_their_level_and_see_what_is_there() -> None:
    generator = np.random.default_rng(2)
    flat = [curve(0.5 + generator.normal(size=5) * 0.02, 0.02) for _ in range(100)]
    line = [curve(0.8 + 0.06 * LOG + generator.normal(size=5) * 0.02, 0.02) for _ in range(100)]
    assert sum(p_monotone(c) < 0.05 for c in flat) <= 11  # 5 % of 100 is 5
    assert sum(p_line(c) < 0.05 for c in line) <= 11
    assert sum(p_monotone(c) < 0.05 for c in line) <= 2
    dips = [curve(np.array([0.3, 0.5, 0.42, 0.6, 0.7]) + generator.normal(size=5) * 0.02, 0.02) for _ in range(50)]
    assert sum(p_monotone(c) < 0.05 for c in dips) >= 25


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        (0.8 + 0.06 * LOG, "log-linear"),
        (0.9 - 0.1 * FRACTIONS**-0.35, "monotone"),
        (np.array([0.3, 0.6, 0.3, 0.6, 0.7]), "irregular"),
        (np.array([0.7, 0.6, 0.5, 0.4, 0.3]), "irregular"),
        (np.array([0.500, 0.502, 0.499, 0.501, 0.500]), "flat"),
        (np.array([0.0, 0.0, 0.4, 0.4, 0.8]), "monotone"),
    ],
)
def test_verdicts(means: np.ndarray, verdict: str) -> None:
    assert shape_of(curve(means)).verdict == verdict
    as_loss = shape_of(curve(1 - means, best=None))
    assert as_loss.verdict == verdict
    assert as_loss.slope.value == pytest.approx(shape_of(curve(means)).slope.value)


def test_the_papers_curves_get_their_words() -> None:
    # GSM8K of LLaMA 7B by fraction of the math data, binomial errors on 1,319 problems; HumanEval on 164.
    math_, code = np.array([12.70, 22.71, 35.90, 43.37, 49.10]) / 100, np.array([5.48, 9.14, 12.19, 11.58, 18.4]) / 100
    errors = [np.sqrt(p * (1 - p) / n) for p, n in ((math_, 1319), (code, 164))]
    found = shape_of(Curve(FRACTIONS, math_, errors[0]))
    assert (found.verdict, found.p_monotone) == ("monotone", 1.0)
    # Its 0.61 points of dip are one problem: no evidence of an irregular curve.
    assert shape_of(Curve(FRACTIONS, code, errors[1])).verdict == "log-linear"


@settings(deadline=None)
@given(st.floats(-7.5, -0.5), st.floats(0.01, 0.2))
def test_a_crossover_on_a_line_is_found_exactly(where: float, slope: float) -> None:
    found = crossover(FRACTIONS, slope * (where - LOG), np.full(5, 1e-6))
    assert math.log2(found.fraction.value) == pytest.approx(where, abs=1e-6)
    assert found.fraction.low == pytest.approx(found.fraction.value, rel=1e-2) and found.share_bracketed == 1


def test_crossovers_outside_of_what_was_tried() -> None:
    always, never = (
        crossover(FRACTIONS, np.full(5, 0.1), np.full(5, 0.001)),
        crossover(FRACTIONS, np.full(5, -0.1), np.full(5, 0.001)),
    )
    assert (always.fraction.value, always.fraction.low, always.fraction.high) == (math.inf,) * 3
    assert (never.fraction.value, never.fraction.high, never.share_bracketed) == (0, 0, 0)
    unsure = crossover(FRACTIONS, np.array([0.1, 0.02, 0.01, -0.01, -0.02]), np.full(5, 0.05))
    assert unsure.fraction.low < 1 / 16 and unsure.fraction.high == math.inf and 0.5 < unsure.share_bracketed < 1
    unknown = crossover(FRACTIONS, np.array([0.1, 0.05, 0.0, -0.05, -0.1]), np.full(5, math.nan))
    assert unknown.fraction.value == pytest.approx(1 / 16) and math.isnan(unknown.fraction.low)


def test_crossover_intervals_cover_the_truth() -> None:
    generator, inside = np.random.default_rng(3), 0
    for _ in range(100):
        gain = -0.03 * (LOG + 4) + generator.normal(size=5) * 0.03
        x = crossover(FRACTIONS, gain, np.full(5, 0.03)).fraction
        inside += x.low <= 1 / 16 <= x.high
    assert inside >= 88


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_the_pareto_front_by_brute_force(points: list[tuple[int, int]]) -> None:
    def beats(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return all(a >= b for a, b in zip(p, q, strict=True)) and p != q

    expected = [not any(beats(other, p) for other in points) for p in points]
    assert pareto_front(np.array(points, float)).tolist() == expected


def test_a_choice_without_a_score_is_not_on_the_front() -> None:
    assert pareto_front(np.array([[1.0, math.nan], [0.5, 0.5]])).tolist() == [False, True]


def test_weights_decide() -> None:
    scores = np.array([[0.1, 0.9], [0.6, 0.6], [0.9, 0.1]])
    errors = np.full((3, 2), 0.01)
    for weights, best in (((0, 1), 0), ((1, 1), 1), ((3, 1), 2)):
        choice = best_choice(scores, errors, np.array(weights, float))
        assert choice.index == best and choice.share_best_K[best] > 0.95
    assert choice.utility_K[2] == pytest.approx(0.7)
    toss = best_choice(np.array([[0.5], [0.5]]), np.full((2, 1), 0.1), np.ones(1))
    assert toss.share_best_K == pytest.approx([0.5, 0.5], abs=0.05)
