"""Intervals against scipy, their coverage, and one place for what makes them."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sftlab.stats.interval import Z, error_of, is_beyond_noise, middle, normal, normal_draws, student, wilson


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_students_interval_against_scipy(values: list[float]) -> None:
    mean = student(values)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (np.mean(values),) * 2
    assert (mean.value, mean.error) == pytest.approx((np.mean(values), error), abs=1e-12)
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=1e-9)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    mean = student([0.25])
    assert mean.value == 0.25 and all(map(math.isnan, (mean.low, mean.high, mean.error)))
    with pytest.raises(ValueError, match="no mean without values"):
        student([])


@given(st.integers(1, 500), st.data())
def test_wilson_against_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_normal_interval_there_and_back() -> None:
    assert stats.norm.cdf(Z) == pytest.approx(0.975, abs=1e-7)
    assert error_of(*normal(0.3, 0.02)) == pytest.approx(0.02)
    assert is_beyond_noise(-0.05, 0.02) and not is_beyond_noise(0.03, 0.02) and not is_beyond_noise(1.0, math.nan)
    low, high = middle(normal_draws(np.array(0.0), np.array(1.0), 40_000))
    assert (low, high) == pytest.approx((-Z, Z), abs=0.05)
    assert middle(np.array([0.0, 1.0, math.inf]), is_ordered=True)[1] == math.inf


def test_only_one_module_knows_the_quantiles() -> None:
    package = Path(__file__).parents[2] / "sftlab"
    written = [p.name for p in package.rglob("*.py") if re.search(r"\b1\.9[56]\d*\b|0\.975|\b0\.025\b", p.read_text())]
    assert written == ["interval.py"]
