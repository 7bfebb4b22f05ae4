"""Policies that give steps up, against steps worked out by hand; plans, ledger and exposures of what they decide."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import ranked

from sftlab.plan.adapt import compile_schedule
from sftlab.plan.adaptive import AdaptivePolicy, NextSegment, Observations, checked_state
from sftlab.plan.compile import Compiler
from sftlab.plan.ledger import exposures, ledger
from sftlab.plan.policy import Proportional
from sftlab.plan.returning_policies import MSFT, DynaMiCS
from sftlab.plan.stage import Stage, StepSize
from sftlab.plan.table import plan_notes

SIZES = {"code": 30, "math": 60}


def seen(segment, step, val=None, num_steps=5, left=1000):
    return Observations(segment, step, SIZES, {}, {}, val or {}, num_steps if segment else 0, left)


def both(code, math):
    return {"code": code, "math": math}


# mSFT


def test_msft_excludes_what_over_fits_first_and_returns_to_its_best_state():
    policy, shares = MSFT(rollout_steps=15), {"code": 1 / 3, "math": 2 / 3}
    assert policy.decide(seen(0, 100)) == NextSegment(shares)
    # code has its minimum after step 110, math after 105: math over-fits first
    assert policy.decide(seen(1, 105, both(3.0, 2.0))) == NextSegment(shares, keep=[105])
    assert policy.decide(seen(2, 110, both(2.5, 2.1))) == NextSegment(shares, keep=[105, 110])
    back = policy.decide(seen(3, 115, both(2.6, 2.2)))
    assert back == NextSegment({"code": 1.0, "math": 0.0}, return_to=105, keep=[105])
    # A roll-out from step 105, where code had 3.0: it falls to its end, so another follows from there.
    assert policy.decide(seen(4, 120, both(2.9, 9.0))).keep == [120]
    assert policy.decide(seen(5, 125, both(2.8, 9.0))).keep == [125]
    onward = policy.decide(seen(6, 130, both(2.7, 9.0)))
    assert onward == NextSegment({"code": 1.0, "math": 0.0}, keep=[130])
    # From 130 on code only rises: the best state is the one that the roll-out began from, and nothing is left.
    assert policy.decide(seen(7, 135, both(2.8, 9.0))).keep == [130]
    assert policy.decide(seen(8, 140, both(2.8, 9.0))).keep == [130]
    assert policy.decide(seen(9, 145, both(2.71, 9.0))) == NextSegment({}, return_to=130, keep=[])


def test_of_two_minima_at_the_same_step_the_one_that_has_risen_more_goes():
    policy = MSFT(rollout_steps=10)
    policy.decide(seen(0, 0))
    policy.decide(seen(1, 5, both(1.0, 2.0)))
    # 1.2 / 1.0 = 1.2 against 2.3 / 2.0 = 1.15: in proportion, code has risen more
    assert policy.decide(seen(2, 10, both(1.2, 2.3))) == NextSegment({"code": 0.0, "math": 1.0}, None, 5, [5])


def test_patience_waits_for_ends_of_segments_after_the_minimum():
    def decided(patience):
        policy = MSFT(rollout_steps=15, patience=patience)
        policy.decide(seen(0, 0))
        policy.decide(seen(1, 5, both(3.0, 3.0)))
        policy.decide(seen(2, 10, both(2.0, 2.0)))
        return policy.decide(seen(3, 15, both(2.1, 1.9)))

    assert decided(1).return_to == 10 and decided(2).return_to is None


# DynaMiCS

# A step on code: code -0.10, math +0.02; on math: code -0.01, math -0.05.
AFTER_CODE, AFTER_MATH = both(2.0 - 4 * 0.10, 3.0 + 4 * 0.02), both(2.0 - 4 * 0.01, 3.0 - 4 * 0.05)


def probed(levels, targets=None, base=(2.0, 3.0), left=(1000, 980)):
    policy = DynaMiCS(levels, targets, probe_steps=4)
    first = policy.decide(seen(0, 0))
    assert first == NextSegment({"code": 1 / 3, "math": 2 / 3}) and policy.needs_validation and policy.may_return
    found = [policy.decide(seen(1, 10, both(*base), num_steps=10, left=left[0]))]
    assert found[0] == NextSegment(both(1.0, 0.0), 4, None, [10])
    found.append(policy.decide(seen(2, 14, AFTER_CODE, num_steps=4)))
    assert found[1] == NextSegment(both(0.0, 1.0), 4, 10, [10])
    last = policy.decide(seen(3, 18, AFTER_MATH, num_steps=4, left=left[1]))
    assert last.return_to == 10 and last.keep == () and last.num_steps is None
    return policy, last.shares


def test_dynamics_lowers_the_targets_as_far_as_the_levels_allow():
    # Target code alone: all on code lowers it most (-0.10 a step), and math may rise to 3 + 10 * 0.02 = 3.2.
    assert probed({"math": 3.2})[1] == pytest.approx(both(1.0, 0.0), abs=1e-6)
    # math at most 3.06: 10 (0.02 w - 0.05 (1 - w)) <= 0.06, so 0.7 w <= 0.56: w = 0.8
    assert probed({"math": 3.06})[1] == pytest.approx(both(0.8, 0.2), abs=1e-6)
    # null is the level of the first measurement: 0.7 w <= 0.5
    assert probed({"math": None})[1] == pytest.approx(both(5 / 7, 2 / 7), abs=1e-6)
    # No level, both targets: code -0.10 + 0.02 = -0.08 a step, math -0.01 - 0.05 = -0.06
    assert probed({})[1] == pytest.approx(both(1.0, 0.0), abs=1e-6)
    assert probed({}, ["math"])[1] == pytest.approx(both(0.0, 1.0), abs=1e-6)


def test_dynamics_misses_levels_that_cannot_be_kept_as_little_as_can_be():
    # math at most 2.4 is out of reach: all on math gives 3 - 10 * 0.05 = 2.5, the least miss
    assert probed({"math": 2.4})[1] == pytest.approx(both(0.0, 1.0), abs=1e-6)
    # Both have a level out of reach (target: a third, which moves with neither here).
    policy = DynaMiCS({"code": 1.0, "math": 2.0}, ["general"], probe_steps=1)
    policy.decide(seen(0, 0))
    policy.decide(seen(1, 10, {**both(2.0, 3.0), "general": 1.0}, num_steps=10))
    policy.decide(seen(2, 11, {**both(1.95, 3.0), "general": 1.0}, num_steps=1))
    shares = policy.decide(seen(3, 12, {**both(2.0, 2.97), "general": 1.0}, num_steps=1)).shares
    # misses: code 1 - 0.5 w, math 1 - 0.3 (1 - w); equal where 0.5 w = 0.3 - 0.3 w: w = 0.375
    assert shares == pytest.approx(both(0.375, 0.625), abs=1e-6)


@given(
    slopes=st.lists(st.floats(-0.2, 0.2).map(lambda x: round(x, 4)), min_size=9, max_size=9),
    room=st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_no_other_shares_on_a_grid_are_better(slopes, room):
    names, S_DE = ("a", "b", "c"), np.array(slopes).reshape(3, 3)
    sizes = dict.fromkeys(names, 10)
    policy = DynaMiCS({"b": 3 + room[0], "c": 3 + room[1]}, probe_steps=1)
    losses = dict.fromkeys(names, 3.0)
    policy.decide(Observations(0, 0, sizes, {}, {}, {}, steps_left=1010))
    policy.decide(Observations(1, 10, sizes, {}, {}, losses, 10, 1000))
    for number, row_E in enumerate(S_DE):
        after = dict(zip(names, (3 + row_E).tolist(), strict=True))
        decided = policy.decide(Observations(2 + number, 11 + number, sizes, {}, {}, after, 1, 900))
    w_D = np.array([decided.shares[name] for name in names])
    grid_GD = np.array([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)]) / 20

    def target_and_miss(w_GD):
        moved_GE = 10 * w_GD @ S_DE
        return moved_GE[:, 0] / 10, np.maximum(moved_GE[:, 1:] - room, 0).max(1)

    (target,), (miss,) = target_and_miss(w_D[None])
    target_G, miss_G = target_and_miss(grid_GD)
    assert miss <= miss_G.min() + 1e-6 and w_D.min() >= 0 and w_D.sum() == pytest.approx(1)
    assert target <= target_G[miss_G <= miss].min(initial=np.inf) + 1e-6


def test_the_horizon_ends_with_the_budget():
    # 5 steps left after the probes: 5 (0.02 w - 0.05 (1 - w)) <= 0.06, so 0.35 w <= 0.31
    assert probed({"math": 3.06}, left=(16, 5))[1] == pytest.approx(both(31 / 35, 4 / 35), abs=1e-6)


def test_no_probes_that_leave_no_steps_to_use_them():
    policy = DynaMiCS({"math": 3.0}, probe_steps=4)
    with pytest.raises(ValueError, match="probes of 2 abilities take 8 steps, more than half of the 15 that are left"):
        policy.decide(seen(0, 0, left=15))
    policy.decide(seen(0, 0))
    with pytest.raises(ValueError, match="none would ever be made"):
        policy.decide(seen(1, 10, both(2.0, 3.0), left=15))
    policy, shares = probed({"math": 3.06})
    # Later ones are left out: two probes of 4 steps are more than half of 15.
    assert policy.decide(seen(4, 28, both(2.0, 3.0), left=15)) == NextSegment(shares)


def test_msft_that_could_never_exclude_an_ability_is_told():
    with pytest.raises(ValueError, match=r"rollout_steps: 20 steps are no less than the stage's 20"):
        MSFT(20).decide(seen(0, 0, left=20))
    policy = MSFT(15, patience=4)
    policy.decide(seen(0, 0))
    with pytest.raises(ValueError, match=r"MSFT\.patience: 4 ends of segments never follow .* in a roll-out of 3"):
        policy.decide(seen(1, 5, both(1.0, 1.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MSFT(0), r"MSFT\.rollout_steps"),
        (lambda: MSFT(5, patience=0), r"MSFT\.patience"),
        (lambda: DynaMiCS(["math"]), r"DynaMiCS\.levels: \['math'\] gives no ability a level"),
        (lambda: DynaMiCS({"math": -1.0}), r"DynaMiCS\.levels\.math"),
        (lambda: DynaMiCS({"math": 1.0}, ["math"]), "are targets and have a level too"),
        (lambda: DynaMiCS({}, probe_steps=0), r"DynaMiCS\.probe_steps"),
        (lambda: DynaMiCS(both(1.0, 1.0)).decide(seen(0, 0)), "none is a target"),
    ],
)
def test_arguments_that_make_no_sense_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Plans

POOLS = [
    ranked(name, [f"{name}{i}" for i in range(60)], np.arange(60) % 9 + 2, np.arange(60) % 5 + 1) for name in SIZES
]


def started(policy, steps=24, every=4, stages=(), **options):
    compiler = Compiler(POOLS, Proportional(), StepSize(examples=10), 64, seed=4)
    stage = Stage(
        "mix", {"code": 1.0, "math": 1.0}, adaptive=policy, steps=steps, decide_every_n_steps=every, **options
    )
    return compile_schedule(compiler, [*stages, stage])


class Said(AdaptivePolicy):
    """Decides what it was told."""

    needs_validation, may_return = True, True

    def __init__(self, *decisions, **attributes):
        self.told = [vars(one) for one in decisions]
        vars(self).update(attributes)

    def decide(self, observations):
        return NextSegment(**self.told[observations.segment])


HALF = both(0.5, 0.5)


def told(adaptation):
    while adaptation.plan.is_open:
        adaptation.observe_step([1.0, 2.0])
        adaptation.observe_validation(both(1.0, 1.0))
        adaptation.extend(lambda content: json.loads(json.dumps(content)))
    return adaptation


def test_steps_that_were_given_up_are_trained_and_are_not_in_the_weights():
    decisions = [
        NextSegment(HALF),
        NextSegment(both(1.0, 0.0), keep=[10]),
        NextSegment(HALF, 2, keep=[10, 14]),
        NextSegment(both(0.0, 1.0), 3, return_to=10, keep=[14]),
        NextSegment(HALF, return_to=14),  # a state on the branch that was given up
        NextSegment({}),
    ]
    adaptation = told(started(Said(*decisions), stages=[Stage("first", {"code": 1.0}, epochs=1)]))
    plan = adaptation.plan
    # first [0, 6), then segments [6, 10) [10, 14) [14, 16), back to 10: [16, 19), back to 14: [19, 23), the end
    assert plan.boundaries == [6, 23] and plan.num_steps == 23 and not plan.is_open
    assert np.flatnonzero(plan.given_up_S()).tolist() == [14, 15, 16, 17, 18]
    assert np.flatnonzero(plan.given_up_S(18)).tolist() == [10, 11, 12, 13, 14, 15]
    assert not plan.given_up_S(15).any()
    lost = plan.given_up_S()
    parts = list(exposures(plan, at_once=7))
    given_up_E, step_E = (np.concatenate([getattr(part, name) for part in parts]) for name in ("given_up_E", "step_E"))
    assert np.array_equal(given_up_E, lost[step_E]) and len(step_E) == len(plan.example_E)
    for row in ledger(plan):
        number, stage = plan.abilities.index(row.ability), ("first", "mix").index(row.stage)
        steps = [s for s in range(plan.num_steps) if (s >= 6) == bool(stage)]
        assert row.examples == sum(int(plan.examples_A(s, s + 1)[number]) for s in steps)
        assert row.given_up_examples == sum(int(plan.examples_A(s, s + 1)[number]) for s in steps if lost[s])
        assert row.given_up_supervised_tokens == sum(int(plan.supervised_A(s, s + 1)[number]) for s in steps if lost[s])
        example_E = plan.example_E[lost[step_E] & (plan.ability_N[plan.example_E] == number) & (step_E >= 6)]
        assert row.given_up_tokens == (int(plan.lengths_N[example_E].sum()) if stage else 0)
    assert sum(row.given_up_examples for row in ledger(plan)) == 50
    before = plan.fingerprint()
    plan.returns.clear()
    assert plan.fingerprint() != before


def test_what_was_given_up_does_not_count_as_seen():
    def trained(segment, plan):
        return set(plan.segments[segment].example_E.tolist())

    decisions = [NextSegment(HALF), NextSegment(both(1.0, 0.0), keep=[4]), NextSegment(both(1.0, 0.0), return_to=4)]
    plan = told(started(Said(*decisions), steps=12)).plan
    assert trained(1, plan) == trained(2, plan)
    straight = [*decisions[:2], NextSegment(both(1.0, 0.0))]
    plan = told(started(Said(*straight), steps=12)).plan
    assert trained(1, plan) != trained(2, plan)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([NextSegment(HALF, keep=[0])], "before the first segment there is no state"),
        ([NextSegment({})], "the stage cannot end"),
        ([NextSegment(HALF), NextSegment(HALF, return_to=4)], r"return_to is 4; the states kept are those after \[\]"),
        ([NextSegment(HALF), NextSegment(HALF, keep=[3])], r"keep names \[3\]; the states there are .* \[4\]"),
        ([NextSegment(HALF), NextSegment(HALF, keep=[4]), NextSegment(HALF), NextSegment(HALF, return_to=4)], "is 4"),
        ([NextSegment(HALF), NextSegment(HALF, num_steps=0)], "num_steps"),
        ([NextSegment(both(0.5, 0.6))], "sum to 1.1"),
    ],
)
def test_decisions_that_cannot_be_carried_out_are_told(decisions, message):
    with pytest.raises(ValueError, match=message):
        told(started(Said(*decisions)))


def test_a_policy_must_say_that_it_may_return():
    decisions = [NextSegment(HALF), NextSegment(HALF, keep=[4])]
    with pytest.raises(ValueError, match="only a policy with may_return = True keeps states"):
        told(started(Said(*decisions, may_return=False)))


def observe(adaptation, rng, until=1000):
    """Losses that rise and fall, as a function of the step alone."""
    while adaptation.plan.is_open and adaptation.plan.num_compiled_steps < until:
        adaptation.observe_step([1.0, 1.0])
        at = adaptation.plan.num_compiled_steps
        adaptation.observe_validation(both(2 + np.sin(rng + at / 3), 2 + np.cos(rng + at / 5)))
        adaptation.extend(lambda content: content)
    return adaptation


MAKERS = [
    lambda: MSFT(8),
    lambda: MSFT(5, patience=2, counted_in="tokens"),
    lambda: DynaMiCS({"math": None}, probe_steps=3),
    lambda: DynaMiCS({"math": 1.9}, ["code"], probe_steps=1),
]


@pytest.mark.parametrize("make", MAKERS)
@given(rng=st.floats(0, 6), cut=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_a_restored_stage_decides_and_plans_the_same_within_its_budget(make, rng, cut):
    whole = observe(started(make(), steps=40), rng)
    part = observe(started(make(), steps=40), rng, cut)
    state = json.loads(json.dumps(part.state_dict()))
    restored = started(make(), steps=40)
    restored.load_state_dict(state)
    assert observe(restored, rng).decisions == whole.decisions
    assert restored.plan.fingerprint() == whole.plan.fingerprint() and restored.plan.returns == whole.plan.returns
    assert whole.plan.num_steps == whole.plan.num_compiled_steps <= 40 and not whole.plan.is_open
    assert whole.plan.num_steps == 40 or whole.decisions[-1].shares == {}
    assert checked_state(whole.policy) == checked_state(restored.policy)
    for before, decision in zip(whole.decisions, whole.decisions[1:], strict=False):
        assert set(decision.keep) <= {*before.keep, decision.observations.step} and len(decision.keep) <= 2


def test_the_dry_run_says_that_it_may_return():
    (note,) = [note for note in plan_notes(started(MSFT(8)).plan) if "fixed" in note]
    assert "MSFT decides the other 20, 4 at a time. It may return to the end of an earlier segment" in note
