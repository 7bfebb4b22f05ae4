"""Adaptive policies against steps worked out by hand, and stages that are compiled from decisions."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import ranked

from sftlab.plan.adapt import compile_schedule
from sftlab.plan.adaptive import AdaptivePolicy, Observations, checked_shares, checked_state
from sftlab.plan.adaptive_policies import Exp3, OnlineDataMixing, OnlineDoReMi
from sftlab.plan.compile import Compiler
from sftlab.plan.ledger import ledger
from sftlab.plan.policy import Proportional
from sftlab.plan.stage import Stage, StepSize
from sftlab.plan.table import plan_notes

SIZES = {"code": 30, "math": 60}


def seen(segment, shares, train=None, val=None, sizes=SIZES):
    return Observations(segment, 10 * segment, sizes, shares, train or {}, val or {})


# Each against numbers worked out apart from the code


def test_online_data_mixing_takes_the_steps_of_its_source():
    policy = OnlineDataMixing(alpha=0.5)
    assert policy.decide(seen(0, {})) == {"code": 0.5, "math": 0.5}
    # R = 0.5 * loss / 0.5 = loss; e_1 = min(1/2, sqrt(ln 2 / 2) = 0.588705) = 1/2: still nothing but exploration
    assert policy.decide(seen(1, {"code": 0.5, "math": 0.5}, {"code": 2.0, "math": 1.0})) == {"code": 0.5, "math": 0.5}
    # R_code = 0.5*2 + 0.5*4/0.5 = 5, R_math = 0.5*1 + 0.5*1/0.5 = 1.5; e_1 = 0.5, e_2 = sqrt(0.693147/4) = 0.416277
    # exp(2.5) / (exp(2.5) + exp(0.75)) = 0.851953; (1 - 2*0.416277)*0.851953 + 0.416277 = 0.558933
    shares = policy.decide(seen(2, {"code": 0.5, "math": 0.5}, {"code": 4.0, "math": 1.0}))
    assert shares == pytest.approx({"code": 0.558933, "math": 0.441067}, abs=2e-6)
    # only math observed: R_math = 0.75 + 0.5*2/0.441067 = 3.017229, R_code stays 5; e_3 = sqrt(0.693147/6) = 0.339889
    # x = exp(0.416277*5) / (exp(2.081385) + exp(0.416277*3.017229)) = 0.695378
    shares = policy.decide(seen(3, shares, {"math": 2.0}))
    assert shares["code"] == pytest.approx((1 - 2 * 0.339889) * 0.695378 + 0.339889, abs=2e-6)


def test_online_doremi_takes_the_steps_of_its_source():
    policy = OnlineDoReMi({"code": 1.0, "math": 2.0}, eta=1.0, smoothing=0.1)
    shares = policy.decide(seen(0, {}))
    assert shares == {"code": 0.5, "math": 0.5} and policy.needs_validation
    # excess 1.5 and max(-0.5, 0) = 0; exp(1.5) = 4.481689; 4.481689/5.481689 = 0.817574; 0.9*0.817574 + 0.05 = 0.785817
    shares = policy.decide(seen(1, shares, val={"code": 2.5, "math": 1.5}))
    assert shares == pytest.approx({"code": 0.785817, "math": 0.214183}, abs=1e-6)
    # code unobserved keeps 1.5, math 1.0: 0.785817*4.481689 = 3.521787, 0.214183*e = 0.582211
    shares = policy.decide(seen(2, shares, val={"math": 3.0}))
    assert shares["code"] == pytest.approx(0.9 * 3.521787 / (3.521787 + 0.582211) + 0.05, abs=1e-6)


def test_exp3_rewards_the_ability_that_was_drawn_by_its_probability():
    policy = Exp3(gamma=0.2, loss_scale=4.0, seed=3)
    first = policy.decide(seen(0, {}))
    (arm,) = [name for name, share in first.items() if share == 1.0]
    policy.decide(seen(1, first, {arm: 2.0}))
    # x = 0.5, p = 0.5, K = 2: weight = exp(0.2 * 0.5 / (2 * 0.5)) = exp(0.1) = 1.105171
    # p = 0.8 * 1.105171 / 2.105171 + 0.1 = 0.519983
    assert policy.state_dict()["_probabilities"][arm] == pytest.approx(0.519983, abs=1e-6)
    draws = [max(d, key=d.get) for d in (Exp3(seed=s).decide(seen(0, {})) for s in range(400))]
    assert 150 < draws.count("code") < 250
    policy = Exp3(gamma=1.0)  # explores alone, whatever it has seen
    policy.load_state_dict({"_log_weights": {"code": 50.0}})
    policy.decide(seen(0, {}))
    assert policy.state_dict()["_probabilities"] == {"code": 0.5, "math": 0.5}


BUILT_IN = [
    lambda: Exp3(),
    lambda: OnlineDataMixing(),
    lambda: OnlineDataMixing(alpha=0.0, counted_in="tokens"),
    lambda: OnlineDoReMi({"code": 1.0, "math": 1.0}),
    lambda: OnlineDoReMi({"code": 1.0, "math": 1.0}, observed="train", smoothing=0.0),
]


@pytest.mark.parametrize("make", BUILT_IN)
@given(losses=st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12)), min_size=1, max_size=8), cut=st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_shares_sum_to_one_and_a_restored_policy_decides_the_same(make, losses, cut):
    policy, shares, state = make(), {}, None
    decided = []
    for segment, pair in enumerate([(0, 0), *losses]):
        if segment == cut:
            state = json.loads(json.dumps(checked_state(policy)))
            other, start = make(), shares
        pair = dict(zip(SIZES, pair, strict=True))
        given_ = seen(segment, shares, {n: v for n, v in pair.items() if shares.get(n)}, pair if segment else {})
        shares = checked_shares(policy, policy.decide(given_), tuple(SIZES))
        decided.append((given_, shares))
    if state is not None:
        other.load_state_dict(state)
        assert [other.decide(given_) for given_, _ in decided[cut:]] == [dict(s) for _, s in decided[cut:]]
        assert decided[cut][0].shares == start


@pytest.mark.parametrize(
    ("decided", "message"),
    [
        ({"code": 1.0}, "must name"),
        ({"code": 0.5, "math": 0.6}, "sum to 1.1"),
        ({"code": 1.5, "math": -0.5}, "between"),
    ],
)
def test_shares_that_are_none_are_told(decided, message):
    with pytest.raises(ValueError, match=message):
        checked_shares(Exp3(), decided, tuple(SIZES))


# Stages


class Turns(AdaptivePolicy):
    """All of one ability, then all of the other."""

    def decide(self, observations):
        names = observations.abilities
        return {name: float(names.index(name) == observations.segment % len(names)) for name in names}


class Seventy(AdaptivePolicy):
    """70 % of one ability, always."""

    def __init__(self, unit="examples"):
        self.counted_in = unit

    def decide(self, observations):
        first, *others = observations.abilities
        return {first: 0.7, **{name: 0.3 / len(others) for name in others}}


def pool(name, count):
    rng = np.random.default_rng(len(name) + count)
    lengths_N = rng.integers(2, 20, count) * (2 if name == "math" else 1)
    return ranked(name, [f"{name}{i}" for i in range(count)], lengths_N, lengths_N // 2)


POOLS = [pool("code", 300), pool("math", 200)]


def started(adaptive, batch=None, stages=(), **options):
    compiler = Compiler(POOLS, Proportional(), batch or StepSize(examples=10), 64, seed=4)
    options = {"steps": 23, "decide_every_n_steps": 5, **options}
    stage = Stage("mix", {"code": 1.0, "math": 1.0}, adaptive=adaptive, **options)
    return compile_schedule(compiler, [*stages, stage])


def grown(adaptation):
    while adaptation.plan.is_open:
        steps = len(adaptation.plan.abilities) * [1.5]
        adaptation.observe_step(steps)
        adaptation.extend(lambda content: content)
    return adaptation.plan


@pytest.mark.parametrize("batch", [StepSize(examples=10), StepSize(rows=2)], ids=str)
def test_a_stage_has_its_steps_and_each_segment_its_shares(batch):
    adaptation = started(Turns(), batch, [Stage("before", {"code": 0.1}, epochs=1)])
    first = adaptation.first_step
    assert adaptation.plan.num_steps == first + 23 and adaptation.plan.num_compiled_steps == first + 5
    plan = grown(adaptation)
    assert plan.num_compiled_steps == plan.num_steps == first + 23 and len(plan.segments) == 1 + 5
    for step in range(23):
        names = {plan.abilities[n] for row in plan.rows(first + step) for n in plan.ability_N[row]}
        assert names == {("code", "math")[step // 5 % 2]}
    assert plan.stages[-1].stage.adaptive is not None and plan.stages[-1].num_steps == 23
    assert len(adaptation.decisions) == 5 and adaptation.decisions[2].observations.step == first + 10


@pytest.mark.parametrize("unit", ["examples", "tokens", "supervised_tokens"])
@pytest.mark.parametrize("batch", [StepSize(examples=10), StepSize(rows=2)], ids=str)
def test_shares_are_reached_in_the_unit_that_they_count(unit, batch):
    plan = grown(started(Seventy(unit), batch, steps=24, decide_every_n_steps=8))
    row = next(row for row in ledger(plan) if row.ability == "code")
    assert row.share(unit) == pytest.approx(0.7, abs=0.03)
    assert plan.stages[-1].requested == pytest.approx({"code": 0.7, "math": 0.3})


def test_observations_are_means_over_the_segment_of_what_it_trained():
    adaptation = started(Turns())
    tokens = int(adaptation.plan.supervised_A(0, 5)[0])
    for nll in (3.0, 4.5):
        adaptation.observe_step([nll, 0.0])
    adaptation.extend(lambda content: content)
    seen_ = adaptation.decisions[-1].observations
    assert seen_.train_loss == {"code": 7.5 / tokens} and seen_.step == 5 and seen_.shares == {"code": 1.0, "math": 0.0}
    assert seen_.val_loss == {} and seen_.sizes == {"code": 300, "math": 200}


@pytest.mark.parametrize("at", range(0, 24, 4))
def test_a_restored_stage_replays_its_decisions_and_goes_on_the_same(at):
    def run(adaptation, begin, end):
        for step in range(begin, end):
            adaptation.observe_step([float(step % 7) + 0.1, 0.3 * step])
            if adaptation.plan.is_open and step + 1 == adaptation.plan.num_compiled_steps:
                adaptation.extend(lambda content: content)

    whole, killed, resumed = (started(OnlineDataMixing()) for _ in range(3))
    run(whole, 0, 23)
    run(killed, 0, min(at, 23))
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    run(resumed, min(at, 23), 23)
    assert resumed.decisions == whole.decisions and resumed.plan.fingerprint() == whole.plan.fingerprint()
    assert len({tuple(d.shares.items()) for d in whole.decisions}) > 2
    broken = json.loads(json.dumps(killed.state_dict())) | {"plan": "another"}
    with pytest.raises(ValueError, match="another plan"):
        started(OnlineDataMixing()).load_state_dict(broken)


def test_the_dry_run_tells_what_is_fixed_and_the_bounds_of_the_rest():
    adaptation = started(Turns())
    (note,) = [note for note in plan_notes(adaptation.plan) if "fixed" in note]
    assert "5 of its 23 steps" in note and "Turns decides the other 18, 5 at a time" in note
    whole = {p.ability: int(p.lengths_N[:180].sum()) for p in POOLS}
    assert f"about {whole['code']:,} tokens (all code) and {whole['math']:,} (all math)" in note
    assert not [note for note in plan_notes(grown(adaptation)) if "fixed" in note]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None, "epochs": 2}, "budget of steps"),
        ({"policy": Proportional()}, "a policy beside it"),
        ({"decide_every_n_steps": None}, "give both or neither"),
        ({"decide_every_n_steps": 0}, "decide_every_n_steps"),
    ],
)
def test_adaptive_stages_that_make_no_sense_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        started(Turns(), **options)


def test_an_adaptive_stage_is_the_last_and_its_state_is_plain():
    with pytest.raises(ValueError, match="an adaptive stage is the last"):
        compiler = Compiler(POOLS, Proportional(), StepSize(examples=10), 64)
        one = Stage("a", {"code": 1.0}, steps=3, adaptive=Turns(), decide_every_n_steps=1)
        compile_schedule(compiler, [one, Stage("b", {"code": 1.0}, epochs=1)])
    policy = Turns()
    policy.seen = {1: 2.0}
    with pytest.raises(ValueError, match=r"Turns.state_dict: a checkpoint keeps plain numbers"):
        checked_state(policy)
    assert math.isclose(sum(started(Seventy()).decisions[0].shares.values()), 1)
