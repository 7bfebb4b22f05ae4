"""Paired comparison: tests against counting by hand, coverage of the intervals."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.stats.paired import holm, mcnemar, paired_bootstrap, paired_interval


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_counts_all_coin_tosses(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    as_far = sum(
        abs(2 * sum(tosses) - n) >= abs(only_b - only_a) for tosses in itertools.product((0, 1), repeat=min(n, 12))
    )
    if n <= 12:
        assert mcnemar(only_a, only_b) == pytest.approx(float(Fraction(as_far, 2**n)))
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) <= 1


def test_a_textbook_case() -> None:
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(0, 0) == 1
    low, high = paired_interval(12, 2, 50)  # p10 = 13/52, p01 = 3/52
    half = 1.959964 * math.sqrt((16 / 52 - (10 / 52) ** 2) / 52)
    assert (low, high) == pytest.approx((-10 / 52 - half, -10 / 52 + half))


@pytest.mark.parametrize(("share_a", "share_b", "n"), [(0.1, 0.1, 40), (0.05, 0.15, 164), (0.02, 0.02, 164)])
def test_the_interval_holds_its_level(share_a: float, share_b: float, n: int) -> None:
    draws = np.random.default_rng(1).multinomial(n, [share_a, share_b, 1 - share_a - share_b], size=4000)
    ends = [paired_interval(int(a), int(b), n) for a, b, _ in draws]
    assert np.mean([low <= share_b - share_a <= high for low, high in ends]) > 0.94


def test_the_bootstrap_holds_its_level() -> None:
    generator = np.random.default_rng(2)
    inside = significant = 0
    for _ in range(100):
        low, high, p = paired_bootstrap(generator.choice([-2.0, -0.5, 0.0, 0.5, 2.0], size=80) + 0.0)
        inside += low <= 0 <= high
        significant += p < 0.05
    assert inside >= 88 and significant <= 12


def test_the_bootstrap_against_the_normal_approximation() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1.0, size=400)
    error = differences.std(ddof=1) / 20
    low, high, p = paired_bootstrap(differences)
    assert (low, high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.1 * error
    )
    assert p == pytest.approx(math.erfc(abs(differences.mean()) / error / math.sqrt(2)), abs=0.002)
    assert paired_bootstrap(differences) == (low, high, p)
    assert paired_bootstrap(np.array([5.0])) == (-math.inf, math.inf, 1.0)
    assert paired_bootstrap(np.zeros(10)) == (0.0, 0.0, 1.0)


def test_holm_against_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, float("nan"), 0.7])[::2] == pytest.approx([1.0, 1.0])


def test_imports_stay_light() -> None:
    modules = "stats.fits stats.forgetting stats.interval stats.paired stats.tradeoff"
    modules += " tasks.gsm8k tasks.mtbench endpoint.client endpoint.replies"
    heavy = "[name for name in ('torch', 'transformers', 'datasets', 'rich', 'matplotlib') if name in sys.modules]"
    code = f"import sys, {', '.join(f'sftlab.{module}' for module in modules.split())}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
