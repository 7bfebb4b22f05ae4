"""Rank correlations and regrets."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from sftlab.stats.ranks import rank_correlation, regret


def test_the_correlation_is_spearmans_and_lies_in_its_interval():
    random = np.random.default_rng(0)
    real = random.normal(size=20)
    proxy = np.round(real + 0.5 * random.normal(size=20), 1)  # with ties
    found = rank_correlation(proxy, real)
    assert found.value == pytest.approx(spearmanr(proxy, real).statistic)
    assert found.low < found.value < found.high <= 1


def test_a_constant_proxy_has_no_correlation():
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)).value)


def test_regret_is_what_the_proxys_first_lacks():
    assert regret(np.array([1.0, 3.0, 2.0]), np.array([0.5, 0.6, 0.9])) == pytest.approx(0.3)
