"""The compiled plan: a pure function, nested subsets, the paper's step counts, budgets, the ledger."""

import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import ranked
from rich.console import Console

from sftlab.plan.compile import RULES, compile_plan
from sftlab.plan.ledger import exposures, ledger, loss_shares, trained_in_full
from sftlab.plan.policy import Proportional, Temperature, WeightedShares
from sftlab.plan.pool import Pool
from sftlab.plan.stage import Stage, StepSize
from sftlab.plan.table import plan_screen

PAPER = {"math": 110_142, "code": 20_022, "general": 86_060}


def pool(name: str, n: int, seed: int = 0, order: np.ndarray | None = None) -> Pool:
    rng = np.random.default_rng(len(name) + n)
    lengths = rng.integers(2, 30, n)
    order = np.arange(n) if order is None else order
    uids = [f"{name}{i}" for i in order]
    return ranked(name, uids, lengths[order], lengths[order] // 2 + 1, seed)


def two_stages(k: float, **budget) -> list[Stage]:
    budget = budget or {"epochs": 3}
    return [
        Stage("specialised", {"math": 1.0, "code": 1.0}, **budget),
        Stage("general", {"general": 1.0, "math": k, "code": k}, **budget),
    ]


def small(k=0.25, batch=None, seed=0, **budget):
    pools = [pool("math", 40, seed), pool("code", 23, seed), pool("general", 31, seed)]
    return compile_plan(pools, two_stages(k, **budget), Proportional(), batch or StepSize(examples=8), 64, seed)


def trained(plan, first, end) -> Counter:
    return Counter(plan.uids_N[plan.example_E[plan.example_span(first, end)]].tolist())


@pytest.mark.parametrize(
    ("batch", "options", "fingerprint"),
    [
        ({"examples": 8}, {}, "a5d44d47f1e8e3045361f87978c0ccc0"),
        ({"rows": 4}, {"policy": Temperature(2)}, "befae487aea8a7e857b1f88d1d7d3d0d"),
        ({"examples": 16}, {"curriculum": "interleaved"}, "b896fa23043c2572d1400c4418ebbcf2"),
    ],
)
def test_plans_are_those_of_their_rules(batch, options, fingerprint):
    """Where plans change on purpose, raise RULES in sftlab/plan/compile.py: the cache of plans goes by it."""
    pools = []
    for name, size in (("math", 120), ("code", 50)):
        lengths = 2 + np.arange(size) * 7 % 29
        pools.append(ranked(name, [f"{name}{i}" for i in range(size)], lengths, lengths // 2 + 1, 3))
    stages = [Stage("one", {"math": 1.0, "code": 0.5}, epochs=1.5, **options), Stage("two", {"code": 1.0}, steps=7)]
    plan = compile_plan(pools, stages, Proportional(), StepSize(**batch), 64, 3)
    assert (RULES, plan.fingerprint()) == (1, fingerprint)


@pytest.mark.parametrize("width", [80, 160])
def test_nothing_of_the_plan_is_cut_off(width):
    names = ("math", "code", "general")
    pools = [ranked(n, [f"{n}{i}" for i in range(N)], np.full(N, 400), np.full(N, 99), 0)
             for n, N in zip(names, (30_000, 1_234, 9_999), strict=True)]  # fmt: skip
    plan = compile_plan(pools, two_stages(1 / 256), Proportional(), StepSize(examples=128), 2048)
    console = Console(width=width, file=io.StringIO())
    console.print(plan_screen(plan, {}))
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for said in ("specialised", "1/256", "30,000", "90,000", "36.0M" if width == 80 else "36,000,000", "general"):
        assert said in text


def test_an_ability_that_no_stage_trains_is_named():
    pools = [pool("math", 40), pool("code", 23), pool("poetry", 31)]
    plan = compile_plan(
        pools, [Stage("all", {"math": 1.0, "code": 0.0}, epochs=1)], Proportional(), StepSize(examples=8), 64
    )
    console = Console(width=120, file=io.StringIO())
    console.print(plan_screen(plan, {}))
    assert "No stage trains code, poetry:" in console.file.getvalue()


@pytest.mark.parametrize(
    ("stages", "steps"),
    [
        (two_stages(1 / 256), [3051, 2031]),
        (two_stages(0.0), [3051, 2019]),
        ([Stage("all", dict.fromkeys(PAPER, 1.0), epochs=3)], [5070]),
        ([Stage("code", {"code": 1 / 256}, epochs=3)], [3]),
    ],
)
def test_the_papers_runs_have_the_papers_steps(stages, steps):
    pools = [Pool.from_count(name, n) for name, n in PAPER.items()]
    plan = compile_plan(pools, stages, Proportional(), StepSize(examples=128), 2048)
    assert [stage.num_steps for stage in plan.stages] == steps


def test_the_papers_subsets_have_the_papers_sizes():
    sizes = {name: len(Pool.from_count(name, n).fraction(1 / 256)) for name, n in PAPER.items()}
    assert sizes == {"math": 430, "code": 78, "general": 336}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_smaller_fractions_lie_inside_larger_ones_and_floor(a, b, seed):
    whole = pool("math", 97, seed)
    small, large = sorted((a, b))
    assert set(whole.fraction(small).uids_N) <= set(whole.fraction(large).uids_N)
    assert len(whole.fraction(small)) == int(np.floor(small * 97 + 1e-9))


@given(st.permutations(range(40)))
@settings(max_examples=20)
def test_the_order_of_the_file_does_not_matter(order):
    stages = [Stage("math", {"math": 0.5}, epochs=2)]
    plans = [
        compile_plan([p], stages, Proportional(), StepSize(rows=2), 64, seed=5)
        for p in (pool("math", 40), pool("math", 40, order=np.array(order)))
    ]
    assert plans[0].fingerprint() == plans[1].fingerprint()


def test_the_order_of_the_abilities_does_not_matter_and_the_seed_does():
    pools = [pool("math", 40), pool("code", 23)]
    stages = [Stage("s", {"math": 1.0, "code": 1.0}, epochs=1)]
    reordered = [Stage("s", {"code": 1.0, "math": 1.0}, epochs=1)]
    prints = {
        compile_plan(p, s, Proportional(), StepSize(examples=8), 64, seed).fingerprint()
        for p, s, seed in ((pools, stages, 0), (pools[::-1], reordered, 0))
    }
    assert len(prints) == 1
    assert compile_plan(pools, stages, Proportional(), StepSize(examples=8), 64, 1).fingerprint() not in prints


@given(
    st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([StepSize(examples=7), StepSize(rows=3)]), st.integers(1, 3)
)
@settings(max_examples=30)
def test_every_epoch_trains_every_selected_example_once(k, batch, epochs):
    plan = small(k, batch, epochs=epochs)
    for stage in plan.stages:
        counts = trained(plan, stage.first_step, stage.end_step)
        assert set(counts.values()) == {epochs}
        assert len(counts) == sum(stage.selected.values())
    assert all(plan.lengths_N[row].sum() <= 64 for step in range(plan.num_steps) for row in plan.rows(step))


def test_a_step_holds_the_conversations_it_says():
    plan = small(batch=StepSize(examples=8), epochs=1)
    sizes = [sum(map(len, plan.rows(step))) for step in range(plan.num_steps)]
    assert sizes == [8] * 7 + [7] + [8] * 5 + [6]  # 63 in stage 1; 31 + 10 + 5 in stage 2


def test_replay_of_zero_is_mixed_sequential():
    pools = [pool("math", 40), pool("code", 23), pool("general", 31)]
    without = [two_stages(0)[0], Stage("general", {"general": 1.0}, epochs=3)]
    plans = [compile_plan(pools, s, Proportional(), StepSize(examples=8), 64) for s in (two_stages(0.0), without)]
    assert plans[0].fingerprint() == plans[1].fingerprint()


def test_runs_that_share_a_stage_share_its_part_of_the_plan():
    plans = [small(k) for k in (0.1, 0.5)]
    spans = [plan.example_span(0, plan.stages[0].end_step) for plan in plans]
    first = [plan.uids_N[plan.example_E[span]].tolist() for plan, span in zip(plans, spans, strict=True)]
    assert first[0] == first[1]


@given(st.integers(1, 60))
@settings(max_examples=20)
def test_a_budget_of_steps_is_kept(steps):
    plan = small(steps=steps)
    assert [stage.num_steps for stage in plan.stages] == [steps, steps]


@given(st.integers(1, 5000))
@settings(max_examples=20)
def test_a_budget_of_supervised_tokens_ends_with_the_step_that_reaches_it(tokens):
    plan = small(supervised_tokens=tokens)
    for stage in plan.stages:
        steps = range(stage.first_step, stage.end_step)
        per_step = np.array([plan.supervised_A(step, step + 1).sum() for step in steps])
        assert per_step.sum() >= tokens > per_step[:-1].sum()


def test_half_an_epoch_trains_half_of_the_examples():
    plan = small(epochs=1.5)
    counts = trained(plan, 0, plan.stages[0].end_step)
    assert sorted(Counter(counts.values()).items()) == [(1, 32), (2, 31)]
    assert plan.stages[0].num_epochs == pytest.approx(1.5)


def test_resampling_goes_through_the_whole_pool():
    pools = [pool("math", 40), pool("code", 10)]
    stages = [Stage("s", {"math": 1.0, "code": 1.0}, epochs=4)]
    for resample, distinct in ((False, 10), (True, 40)):
        policy = WeightedShares({"math": 1.0, "code": 1.0}, resample=resample)
        rows = ledger(compile_plan(pools, stages, policy, StepSize(examples=5), 64))
        assert {row.ability: row.distinct_examples for row in rows} == {"math": distinct, "code": 10}


def test_an_ability_that_the_policy_gives_nothing_is_not_trained_in_full():
    stages = [Stage("s", {"math": 1.0, "code": 1.0}, epochs=1), Stage("t", {"math": 0.5, "code": 1.0}, epochs=1)]
    policy = WeightedShares({"math": 1.0, "code": 0.0})
    plan = compile_plan([pool("math", 40), pool("code", 10)], stages[:1], policy, StepSize(examples=5), 64)
    assert trained_in_full(plan) == {"s": ("math",)}
    plan = compile_plan([pool("math", 40), pool("code", 10)], stages, Proportional(), StepSize(examples=5), 64)
    assert trained_in_full(plan) == {"s": ("math", "code"), "t": ("code",)}


def test_the_ledger_adds_up_to_the_plan():
    plan = small()
    rows = ledger(plan)
    assert sum(row.supervised_tokens for row in rows) == plan.supervised_A(0, plan.num_steps).sum()
    assert sum(row.examples for row in rows) == plan.examples_A(0, plan.num_steps).sum() == len(plan.example_E)
    for stage in plan.stages:
        assert sum(r.share_tokens for r in rows if r.stage == stage.stage.name) == pytest.approx(1)
    assert {row.ability: row.epochs for row in rows if row.stage == "general"} == {"math": 3, "code": 3, "general": 3}


def test_exposures_name_every_step_of_every_example_up_to_where_training_came():
    plan = small()
    wanted = [(plan.uids_N[n], plan.ability_N[n], step) for step in range(9) for row in plan.rows(step) for n in row]
    for at_once in (1, 20, 1000):  # whatever is told together
        parts = list(exposures(plan, 9, at_once))
        seen = [row for part in parts for row in zip(part.uids_E, part.ability_E, part.step_E, strict=True)]
        assert seen == wanted and not any(part.stage_E.any() for part in parts)
        assert at_once > 1 or len(parts) == 9
    assert sum(len(part.uids_E) for part in exposures(plan)) == len(plan.example_E)
    stages = np.concatenate([part.stage_E for part in exposures(plan)])
    assert np.array_equal(
        stages, np.repeat([0, 1], [plan.example_span(0, plan.boundaries[0]).stop, (stages == 1).sum()])
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [Stage("s", {"poetry": 1.0}, epochs=1)], "no ability named.*poetry"),
        (lambda: [Stage("s", {"math": 1.5}, epochs=1)], "between 0 and 1"),
        (lambda: [Stage("s", {"math": 0.001}, epochs=1)], "leaves nothing to train"),
        (lambda: [Stage("s", {"math": 1.0}, epochs=1, steps=3)], "one budget"),
        (lambda: [Stage("s", {"math": 1.0}, epochs=1)] * 2, "names of their own"),
        (lambda: [Stage("s", {}, epochs=1)], "no ability"),
    ],
)
def test_impossible_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        compile_plan([pool("math", 40)], stages(), Proportional(), StepSize(rows=2), 64)


@pytest.mark.parametrize("given", [{}, {"examples": 1, "rows": 1}, {"rows": 0}])
def test_a_batch_counts_one_thing(given):
    with pytest.raises(ValueError, match=r"data\.batch"):
        StepSize(**given)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "-x", "a\nb", "x" * 101])
def test_a_stages_name_is_a_file_name(name):
    with pytest.raises(ValueError, match="stage: "):
        Stage(name, {"math": 1.0}, epochs=1)


def test_loss_weights_show_the_share_of_the_loss_beside_the_share_of_the_tokens():
    pools = [pool("math", 40), pool("code", 24)]
    weights = {"math": 1.0, "code": 4.0}
    stage = Stage("both", {"math": 1.0, "code": 1.0}, epochs=1, loss_weights=weights)
    plan = compile_plan(pools, [stage], Proportional(), StepSize(examples=64), 64)  # one step
    tokens = {row.ability: row.supervised_tokens for row in ledger(plan)}
    wanted = 4 * tokens["code"] / (4 * tokens["code"] + tokens["math"])
    assert loss_shares(plan, plan.stages[0]) == pytest.approx({"code": wanted, "math": 1 - wanted})
    assert loss_shares(plan, plan.stages[0], "ability") == pytest.approx({"code": 0.8, "math": 0.2})
    assert loss_shares(plan, plan.stages[0], "example")["code"] == pytest.approx(4 * 24 / (4 * 24 + 40))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_screen(plan, {}))
    text = console.export_text()
    assert "of the loss" in text and f"{wanted:.2%}" in text and "loss weights math 1, code 4" in text


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"poetry": 1.0}, "poetry"), ({"math": -1.0}, r"loss_weights\.math"), ({"math": 0.0}, "nothing to train")],
)
def test_loss_weights_that_make_no_sense_are_told(weights, message):
    with pytest.raises(ValueError, match=message):
        Stage("only", {"math": 1.0}, epochs=1, loss_weights=weights)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_budget_of_supervised_tokens_that_a_step_meets_exactly_ends_with_it(steps):
    stages = [Stage("all", {"math": 1.0}, steps=30)]
    whole = compile_plan([pool("math", 40)], stages, Proportional(), StepSize(examples=8), 64)
    budget = int(whole.supervised_A(0, steps).sum())
    stages = [Stage("all", {"math": 1.0}, supervised_tokens=budget)]
    assert compile_plan([pool("math", 40)], stages, Proportional(), StepSize(examples=8), 64).num_steps == steps


def test_edges_of_a_stage_are_taken_and_what_lies_beyond_is_not():
    for fraction in (0, 1):
        assert Stage("s", {"math": fraction, "code": 1.0}, epochs=1).fractions["math"] == fraction
    for fraction in (-0.01, 1.01):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Stage("s", {"math": fraction}, epochs=1)
    with pytest.raises(ValueError, match="names no ability"):
        Stage("s", {}, epochs=1)


def test_the_screen_names_each_stage_once_and_says_what_is_not_shuffled():
    pools = [pool("math", 40), pool("code", 23), pool("general", 31)]
    stages = [Stage("first", {"math": 1.0, "code": 0.0}, epochs=1),
              Stage("second", {"general": 0.25, "math": 1 / 3}, epochs=2, curriculum="short_first")]  # fmt: skip
    plan = compile_plan(pools, stages, Proportional(), StepSize(examples=8), 64)
    console = Console(file=io.StringIO(), width=160)
    console.print(
        plan_screen(plan, {"math": {"dropped: too long": 3}, "code": {}}, {"math": {"dropped: too long": "record 7"}})
    )
    text = console.file.getvalue()
    lines = [[word for word in line.split() if word] for line in text.splitlines()]
    assert [line[1:4] for line in lines if line[:1] == ["first"]] == [["code", "23", "0"]]
    assert [line[1:4] for line in lines if line[:1] == ["second"]] == [["general", "31", "1/4"]]
    assert ["math", "40", "1", "40", "40"] in [line[:5] for line in lines]
    assert "in the order short_first" in text and text.count("in the order") == 1
    assert "Stage first has only" in text and "record 7" in text and "dropped: too long" in text
    epochs = {(row.stage, row.ability): row.epochs for row in ledger(plan)}
    assert epochs == {
        ("first", "math"): 1.0,
        ("first", "code"): 0.0,
        ("second", "general"): 2.0,
        ("second", "math"): 2.0,
    }
