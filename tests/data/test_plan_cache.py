"""The cache of plans: what is found is what would be compiled; what decides a plan is in its name; damage is told."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest

from sftlab.data import plan_cache
from sftlab.data.ability import CodeData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.data.plan_cache import planned
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.plan import compile as compiling
from sftlab.plan.plan import Plan
from sftlab.plan.policy import EqualCount, Temperature, WeightedShares
from sftlab.plan.rate import Cosine
from sftlab.plan.stage import Stage

STAGES = [Stage("first", {"math": 1.0}, epochs=1), Stage("second", {"code": 1.0, "math": 0.25}, epochs=2)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_cache, "MIN_EXAMPLES", 1)
    return tmp_path / "cache" / "plans"


def loaded(num_math=60, drop=None, **options):
    math = MathData(num_examples=num_math, val_fraction=0.1, drop=drop)
    changes = {"template": "vicuna_short", "max_length": 256, "batch": {"examples": 8}, "seed": 1, **options}
    data = MixtureData({"math": math, "code": CodeData(num_examples=50)}, **changes)
    data.load(lab_tokenizer())
    return data


def found(data, stages=STAGES):
    plan, adaptation = planned(data, stages)
    assert adaptation is None and not plan.is_open
    return plan, data.plan_note.startswith("The plan was found in the cache")


def assert_equal(one: Plan, other: Plan):
    assert one.fingerprint() == other.fingerprint() and one.stages[0].stage == other.stages[0].stage
    for field in fields(Plan):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype and (mine == its).all(), field.name
        elif field.name not in ("segments", "stages"):
            assert mine == its, field.name
    for mine, its in zip(one.stages, other.stages, strict=True):
        assert all(getattr(mine, field.name) == getattr(its, field.name) for field in fields(mine))


@pytest.mark.parametrize("batch", [{"examples": 8}, {"rows": 4}])
def test_a_plan_that_is_found_is_the_plan_that_was_compiled(batch, cache):
    compiled, was_found = found(data := loaded(batch=batch))
    assert not was_found and str(cache) in data.plan_note and data.plan_note in data.notes()
    again, was_found = found(loaded(batch=batch))
    assert was_found
    assert_equal(compiled, again)


def test_small_plans_are_not_kept(cache, monkeypatch):
    monkeypatch.setattr(plan_cache, "MIN_EXAMPLES", 111)
    data = loaded()
    assert not found(data)[1] and not data.plan_note and not cache.exists()


def with_stages(*changes):
    return [replace(stage, **change) for stage, change in zip(STAGES, changes, strict=True)]


WEIGHTS = {"math": 1.0, "code": 0.3}
BLOCKED = {"curriculum": "blocked"}
TURNED = {"fractions": dict(reversed(STAGES[1].fractions.items()))}


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"seed": 2}, STAGES),
        ({"max_length": 128}, STAGES),
        ({"batch": {"examples": 9}}, STAGES),
        ({"batch": {"rows": 8}}, STAGES),
        ({"packing": False}, STAGES),
        ({"num_math": 61}, STAGES),
        ({"policy": EqualCount()}, STAGES),
        ({"policy": Temperature(2)}, STAGES),
        ({"policy": WeightedShares(WEIGHTS)}, STAGES),
        ({"policy": WeightedShares(WEIGHTS, max_repeats=2)}, STAGES),
        ({}, with_stages({"name": "other"}, {})),
        ({}, with_stages({"epochs": 2}, {})),
        ({}, with_stages({}, {"fractions": {"code": 1.0, "math": 0.5}})),
        ({}, with_stages({}, {"counted_in": "tokens"})),
        ({}, with_stages({}, {"policy": EqualCount()})),
        ({}, with_stages({}, BLOCKED)),
    ],
)
def test_what_decides_a_plan_decides_its_name(options, stages, cache):
    found(loaded())
    data = loaded(**options)
    plan, was_found = found(data, stages)
    assert not was_found
    for path in cache.glob("*.plan"):
        path.unlink()
    assert_equal(plan, found(data, stages)[0])


def test_the_order_of_a_stages_abilities_decides_it_too(cache):
    one, _ = found(loaded(), with_stages({}, BLOCKED))
    other, was_found = found(loaded(), with_stages({}, {**BLOCKED, **TURNED}))
    assert not was_found and one.fingerprint() != other.fingerprint()


def test_a_drop_list_the_rules_and_numpys_version_decide_it_too(cache, tmp_path, monkeypatch):
    data = loaded()
    found(data)
    drop = tmp_path / "drop.jsonl"
    drop.write_text(json.dumps({"uid": data.abilities["math"].examples.uids[0], "reason": "x"}))
    assert not found(loaded(drop=str(drop)))[1]
    monkeypatch.setattr(np, "__version__", "0")
    assert not found(loaded())[1]
    monkeypatch.setattr(compiling, "RULES", 99)
    assert not found(loaded())[1]
    data = loaded()
    data.abilities["math"].base_losses_I = np.zeros(len(data.abilities["math"].examples))
    assert not found(data)[1]


def test_a_learning_rate_is_no_part_of_its_name_and_the_stages_are_those_of_today(cache):
    found(loaded())
    stages = with_stages(
        {"learning_rate": 0.5, "warmup_steps": 1}, {"lr_schedule": Cosine(), "loss_weights": {"math": 2.0}}
    )
    plan, was_found = found(loaded(), stages)
    assert was_found and [part.stage for part in plan.stages] == stages


def cut(path):
    os.truncate(path, path.stat().st_size - 4)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_head(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'"num_steps": ') + 13] ^= 1
    path.write_bytes(content)


DAMAGES = [
    cut,
    flip,
    flip_head,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes() + b"x"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_told_in_one_line_and_made_again(damage, cache, capsys):
    compiled, _ = found(loaded())
    (path,) = cache.glob("*.plan")
    whole = path.read_bytes()
    damage(path)
    again, was_found = found(loaded())
    told = capsys.readouterr().err
    assert not was_found and told.count("\n") == 1 and "damaged" in told and str(path) in told
    assert_equal(compiled, again)
    assert path.read_bytes() == whole


def test_those_that_were_used_last_stay(cache, monkeypatch):
    found(loaded())
    (first,) = cache.glob("*.plan")
    monkeypatch.setattr(plan_cache, "MAX_BYTES", int(2.5 * first.stat().st_size))
    found(loaded(seed=2))
    os.utime(first, (1, 1))
    assert found(loaded())[1]  # it is used, so the other one is the oldest
    (second,) = set(cache.glob("*.plan")) - {first}
    os.utime(second, (1, 1))
    found(loaded(seed=3))
    assert first.exists() and not second.exists() and len(list(cache.glob("*.plan"))) == 2


def test_several_writers_at_once_compile_it_once(cache, monkeypatch):
    calls, datas = [], [loaded() for _ in range(4)]
    compiled = plan_cache._compiled
    monkeypatch.setattr(plan_cache, "_compiled", lambda *given: calls.append(1) or compiled(*given))
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda data: planned(data, STAGES)[0], datas))
    assert len(calls) == 1 and len({plan.fingerprint() for plan in plans}) == 1


def test_a_cache_that_cannot_be_written_is_told_and_costs_the_time_alone(cache, capsys):
    data = loaded()
    cache.write_text("a file in the way")
    plan, was_found = found(data)
    assert not was_found and len(plan.example_E) and "not kept" in capsys.readouterr().err
    assert data.plan_note.startswith("The plan was compiled in")


def test_a_cache_that_may_only_be_read_is_read(cache, monkeypatch):
    def refuse(*_):
        raise PermissionError

    found(loaded())
    monkeypatch.setattr(os, "utime", refuse)
    assert found(loaded())[1]
