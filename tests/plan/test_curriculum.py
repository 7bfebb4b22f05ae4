"""Curricula: another order of the same examples, in every pass, whatever the budget."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import ranked

from sftlab.plan.compile import compile_plan
from sftlab.plan.packing import pack
from sftlab.plan.policy import Proportional
from sftlab.plan.pool import Pool
from sftlab.plan.stage import Stage, StepSize

ORDERED = ["short_first", "long_first", "easy_first", "hard_first", "blocked", "interleaved"]
BUDGETS = [{"epochs": 2}, {"epochs": 0.4}, {"epochs": 1.3}, {"steps": 9}, {"steps": 31}, {"supervised_tokens": 700}]


def pool(name: str, count: int) -> Pool:
    rng = np.random.default_rng(len(name) + count)
    lengths_N = rng.integers(2, 40, count)
    losses_N = rng.random(count).round(1)
    uids = [f"{name}{i}" for i in range(count)]
    return ranked(name, uids, lengths_N, lengths_N // 2 + 1, losses_N=losses_N)


POOLS = [pool("math", 61), pool("code", 23), pool("general", 40)]


def plan_of(curriculum, batch, **budget):
    stage = Stage("only", {"math": 1.0, "general": 0.5, "code": 1.0}, curriculum=curriculum, **budget)
    return compile_plan(POOLS, [stage], Proportional(), batch, 64, seed=2)


@pytest.mark.parametrize("curriculum", ORDERED)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_examples_are_those_of_the_shuffled_stage(curriculum, budget):
    batch = StepSize(examples=7)
    one, other = plan_of("shuffled", batch, **budget), plan_of(curriculum, batch, **budget)
    assert Counter(one.example_E.tolist()) == Counter(other.example_E.tolist())
    assert one.num_steps == other.num_steps and one.stages[0].num_epochs == other.stages[0].num_epochs
    assert one.fingerprint() != other.fingerprint()
    assert other.fingerprint() == plan_of(curriculum, batch, **budget).fingerprint()


def step_keys(plan, values_N):
    return [values_N[np.concatenate(plan.rows(step))] for step in range(plan.num_steps)]


@pytest.mark.parametrize("batch", [StepSize(examples=7), StepSize(rows=2)], ids=str)
@pytest.mark.parametrize(
    ("curriculum", "sign"), [("short_first", 1), ("long_first", -1), ("easy_first", 1), ("hard_first", -1)]
)
def test_no_step_comes_before_an_easier_one(curriculum, sign, batch):
    plan = plan_of(curriculum, batch, epochs=1)
    keys = step_keys(plan, sign * (plan.lengths_N if curriculum in ("short_first", "long_first") else plan.losses_N))
    assert all(one.max() <= other.min() for one, other in itertools.pairwise(keys))
    assert all(len(plan.rows(step)) <= 2 for step in range(plan.num_steps)) or batch.examples


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_step_of_rows_has_no_room_for_the_example_that_comes_next(num_rows):
    plan = plan_of("short_first", StepSize(rows=num_rows), epochs=1)
    lengths = [plan.lengths_N[np.concatenate(plan.rows(step))] for step in range(plan.num_steps)]
    for mine, others in itertools.pairwise(lengths):  # the next one is the shortest of the next step
        assert len(pack([*mine, others.min()], 64).sizes_R) > num_rows


def test_blocks_come_in_the_order_of_the_stage_again_in_each_pass():
    plan = plan_of("blocked", StepSize(examples=1), epochs=2)
    names = [plan.abilities[number] for number in plan.ability_N[plan.example_E]]
    assert names == (["math"] * 61 + ["general"] * 20 + ["code"] * 23) * 2


@given(cut=st.integers(1, 104))
@settings(max_examples=20, deadline=None)
def test_interleaved_abilities_have_their_shares_from_the_first_step_on(cut):
    plan = plan_of("interleaved", StepSize(examples=1), epochs=1)
    counts_A = np.bincount(plan.ability_N[plan.example_E[:cut]], minlength=3)
    whole_A = np.bincount(plan.ability_N[plan.example_E], minlength=3)
    assert np.abs(counts_A - whole_A * cut / 104).max() <= 1.5


def test_what_is_equal_in_the_order_stays_shuffled():
    plan = plan_of("blocked", StepSize(examples=1), epochs=2)
    math = plan.example_E[plan.ability_N[plan.example_E] == plan.abilities.index("math")]
    first, second = math[:61].tolist(), math[61:].tolist()
    assert sorted(first) == sorted(second) and first != second and first != sorted(first)


def test_rows_and_steps_do_not_go_together_with_an_order():
    with pytest.raises(ValueError, match=r"needs a budget of epochs"):
        plan_of("short_first", StepSize(rows=2), steps=4)


def test_an_unknown_curriculum_is_told():
    with pytest.raises(ValueError, match=r"stage 'a': curriculum: 'easy' is not one of shuffled, short_first"):
        Stage("a", {"math": 1.0}, epochs=1, curriculum="easy")


@pytest.mark.parametrize("unit", ["tokens", "supervised_tokens"])
@given(fraction=st.floats(0, 1))
@settings(max_examples=40)
def test_fractions_of_tokens_are_nested_and_reach_their_part(unit, fraction):
    whole = POOLS[0]
    part = whole.fraction(fraction, unit)
    assert part.uids_N.tolist() == whole.uids_N[: len(part)].tolist()
    assert part.total(unit) <= fraction * whole.total(unit) + 1e-6
    assert len(part) == len(whole) or whole.first(len(part) + 1).total(unit) > fraction * whole.total(unit)
