"""A plan grows by segments, and a stage may end early: what stands in it stays, and everything is asked by step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import ranked

from sftlab.plan.compile import Compiler, compile_plan
from sftlab.plan.ledger import exposures, ledger
from sftlab.plan.policy import Proportional
from sftlab.plan.pool import Pool
from sftlab.plan.stage import Stage, StepSize


def pool(name: str, count: int) -> Pool:
    rng = np.random.default_rng(len(name) + count)
    lengths_N = rng.integers(1, 40, count)
    return ranked(name, [f"{name}{i}" for i in range(count)], lengths_N, rng.integers(0, lengths_N + 1))


POOLS = [pool("math", 60), pool("code", 45)]
BOTH = {"math": 1.0, "code": 1.0}


class Exactly(Proportional):
    """So many examples of each ability."""

    def __init__(self, wanted):
        self.wanted = wanted

    def counts(self, pools):
        return {pool.ability: self.wanted[pool.ability] for pool in pools}


def compiler() -> Compiler:
    return Compiler(POOLS, Proportional(), StepSize(examples=7), 64, seed=3)


def step_content(plan, step):
    return [row.tolist() for row in plan.rows(step)]


def test_a_schedule_compiled_stage_by_stage_is_the_one_compiled_at_once():
    stages = [Stage("one", BOTH, epochs=2), Stage("two", {"code": 0.5}, steps=9), Stage("three", BOTH, epochs=0.5)]
    whole = compile_plan(POOLS, stages, Proportional(), StepSize(examples=7), 64, seed=3)
    grown = compiler()
    for stage in stages:
        grown.append(stage)
    grown.plan.is_open = False
    assert grown.plan.fingerprint() == whole.fingerprint()
    assert len(whole.segments) == len(stages) == len(whole.stages)


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_segment_never_changes_what_stands_before_it(sizes):
    growing = compiler()
    plan, seen = growing.plan, []
    for steps in sizes:
        growing.append(Stage("only", BOTH, steps=steps), stage_steps=sum(sizes))
        assert [step_content(plan, step) for step in range(len(seen))] == seen
        seen = [step_content(plan, step) for step in range(plan.num_compiled_steps)]
        assert plan.num_steps == sum(sizes) and len(plan.stages) == 1  # the learning rate knows the stage's end
    assert plan.num_compiled_steps == sum(sizes)


def test_a_stages_next_segment_goes_on_with_the_examples_that_it_has_not_trained():
    growing = compiler()
    policies = [Exactly({"math": 20, "code": 15}), Exactly({"math": 5, "code": 30}), Exactly({"math": 35, "code": 0})]
    for policy in policies:
        growing.append(Stage("only", BOTH, epochs=1, policy=policy), stage_steps=15)
    assert growing.plan.num_compiled_steps == growing.plan.num_steps == 15
    assert len(set(growing.plan.example_E.tolist())) == 105  # each of the 60 and 45 once
    assert [segment.planned.per_epoch for segment in growing.plan.segments] == [p.wanted for p in policies]


@given(cut=st.integers(1, 14))
@settings(max_examples=20, deadline=None)
def test_a_stage_that_ends_early_leaves_what_was_trained_and_moves_up_what_follows(cut):
    stages = [Stage("one", BOTH, steps=15), Stage("two", {"code": 1.0}, steps=6)]
    plan, whole = (compile_plan(POOLS, stages, Proportional(), StepSize(examples=7), 64) for _ in range(2))
    plan.end_stage(cut)
    assert plan.boundaries == [cut, cut + 6] and plan.num_steps == plan.num_compiled_steps == cut + 6
    assert [step_content(plan, s) for s in range(cut)] == [step_content(whole, s) for s in range(cut)]
    assert [step_content(plan, cut + s) for s in range(6)] == [step_content(whole, 15 + s) for s in range(6)]
    assert (
        sum(row.examples for row in ledger(plan))
        == sum(len(part.uids_E) for part in exposures(plan))
        == plan.examples_A(0, cut + 6).sum()
    )
    assert plan.stages[0].num_epochs == pytest.approx(whole.stages[0].num_epochs * cut / 15)


def test_a_run_that_ends_early_ends_there_and_takes_no_more():
    stages = [Stage("one", BOTH, steps=15), Stage("two", {"code": 1.0}, steps=6)]
    plan = compile_plan(POOLS, stages, Proportional(), StepSize(examples=7), 64)
    plan.is_open = True
    plan.end_stage(4, ends_run=True)
    assert not plan.is_open and plan.boundaries == [4] and plan.num_steps == 4


def test_each_step_can_be_asked_for_alone():
    plan = compile_plan(POOLS, [Stage("one", BOTH, epochs=1)], Proportional(), StepSize(rows=2), 64)
    steps = range(plan.num_steps)
    assert sum(plan.examples_A(s, s + 1) for s in steps).tolist() == plan.examples_A(0, plan.num_steps).tolist()
    assert sum(plan.supervised_A(s, s + 1) for s in steps).tolist() == plan.supervised_A(0, plan.num_steps).tolist()
    assert sum(plan.num_tokens(s, s + 1) for s in steps) == plan.num_tokens(0, plan.num_steps)
