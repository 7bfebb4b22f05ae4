"""Mixture policies: exact shares, whatever they count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import ranked

from sftlab.plan.policy import EqualCount, MixturePolicy, Proportional, Temperature, WeightedShares, apportion
from sftlab.plan.pool import Pool

SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 300), min_size=1)


def pool(name: str, n: int, mean: int = 20) -> Pool:
    rng = np.random.default_rng(n)
    lengths = rng.integers(2, 2 * mean, n)
    return ranked(name, [f"{name}{i}" for i in range(n)], lengths, lengths // 2 + 1)


@given(st.integers(0, 10_000), st.dictionaries(st.text(min_size=1), st.floats(0.01, 10), min_size=1))
def test_apportioned_counts_sum_to_the_total_and_miss_their_quota_by_less_than_one(total, weights):
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    counts = apportion(total, shares)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - total * share) < 1 + 1e-6 for name, share in shares.items())


@given(SIZES)
def test_proportional_takes_everything_once(sizes):
    assert Proportional().counts([pool(name, n) for name, n in sizes.items()]) == sizes


@given(SIZES)
def test_equal_count_takes_as_many_of_each_as_the_smallest_has(sizes):
    counts = EqualCount().counts([pool(name, n) for name, n in sizes.items()])
    assert counts == dict.fromkeys(sizes, min(sizes.values()))


@given(SIZES, st.sampled_from(["examples", "tokens", "supervised_tokens"]), st.floats(1, 4))
def test_weighted_shares_are_reached_in_their_unit_without_more_repeats_than_allowed(sizes, unit, repeats):
    pools = [pool(name, n) for name, n in sizes.items()]
    policy = WeightedShares({name: i + 1.0 for i, name in enumerate(sizes)}, unit, max_repeats=repeats)
    counts, shares = policy.counts(pools), policy.shares(pools)
    cycled = {p.ability: np.resize(p.sizes_N(unit), counts[p.ability]).sum() for p in pools}
    total = sum(cycled.values())
    largest = max(int(p.sizes_N(unit).max()) for p in pools)
    for p in pools:
        assert counts[p.ability] <= np.ceil(repeats) * len(p)
        assert cycled[p.ability] <= repeats * p.total(unit) + largest
        assert abs(cycled[p.ability] - shares[p.ability] * total) <= len(pools) * largest


def test_temperature_runs_from_proportional_to_equal():
    pools = [pool("a", 100), pool("b", 400)]
    assert Temperature(1).shares(pools) == {"a": 0.2, "b": 0.8}
    assert Temperature(2).shares(pools)["a"] == pytest.approx(1 / 3)
    assert Temperature(1e6).shares(pools)["a"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WeightedShares({"a": -1.0}), "weights"),
        (lambda: WeightedShares({"a": 1.0}, counted_in="words"), "counted_in"),  # type: ignore[arg-type]
        (lambda: Temperature(0.5), "temperature"),
        (lambda: WeightedShares({"b": 1.0}).counts([pool("a", 3)]), "no weight for"),
    ],
)
def test_impossible_policies_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_policy_of_the_user_with_wrong_shares_is_refused():
    class Half(MixturePolicy):
        def shares(self, pools):
            return {p.ability: 0.25 for p in pools}

    with pytest.raises(ValueError, match="sum to 1"):
        Half().counts([pool("a", 3), pool("b", 3)])


def test_edges_of_what_a_policy_takes_are_taken():
    pools = [pool("a", 3), pool("b", 3)]
    assert WeightedShares({"a": 0.0, "b": 2.0}).counts(pools) == {"a": 0, "b": 3}
    assert Temperature(1.0).counts(pools) == Proportional().counts(pools)
    for wrong in (
        lambda: WeightedShares({"a": 0.0}),
        lambda: WeightedShares({}),
        lambda: WeightedShares({"a": 1.0}, max_repeats=0.0),
        lambda: Temperature(1.0, max_repeats=0.0),
    ):
        with pytest.raises(ValueError, match=r"weights|max_repeats"):
            wrong()


def test_an_ability_without_a_supervised_token_gives_no_example_where_these_are_counted():
    dumb = ranked("dumb", ["x", "y"], np.array([5, 5]), np.array([0, 0]))
    counts = WeightedShares({"a": 1.0, "dumb": 1.0}, "supervised_tokens").counts([pool("a", 9), dumb])
    assert counts["dumb"] == 0
