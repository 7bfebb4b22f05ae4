"""Search files and factors: what they stand for, and what is said of bad ones."""

import numpy as np
import pytest
from fitting import ROOT
from hypothesis import given
from hypothesis import strategies as st
from surfaces import FACTORS, SIZES, spec_of

from sftlab.screen import screen
from sftlab.search.design import PRIOR, d_optimal
from sftlab.search.factors import Choice, Number, Shares, even_levels
from sftlab.search.search import Search
from sftlab.search.site import StudySite
from sftlab.search.space import Space
from sftlab.search.spec import read_search
from sftlab.study.graph import find_problems_of

SHIPPED = sorted((ROOT / "configs" / "searches").glob("*.yaml"))
THREE = {"math": [0, 1], "code": [0, 1], "general": [0, 1]}


@given(
    draws=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    low=st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=3, max_size=3),
    parts=st.sampled_from([4, 5, 10, 20]),
)
def test_drawn_shares_are_multiples_of_the_step_within_their_bounds(draws, low, parts):
    factor = Shares("share", ("a", "b", "c"), tuple(low), (1.0, 0.9, 0.8), 1 / parts)
    value = factor.at(draws)
    if value is not None:
        assert sum(value) == pytest.approx(1)
        assert all(abs(share * parts - round(share * parts)) < 1e-9 for share in value)
        assert factor.allows(value)
        assert value in factor.levels()


@given(num_levels=st.integers(3, 9), zero=st.booleans())
def test_a_logarithmic_number_is_even_on_its_scale_and_zero_stands_a_step_below(num_levels, zero):
    values = even_levels(1 / 256, 1, True, False, num_levels)
    factor = Number("k", ("schedule.k",), ((0.0,) if zero else ()) + values, True)
    units = [factor.unit(value) for value in factor.values]
    assert (units[0], units[-1]) == (0, pytest.approx(1))
    assert np.allclose(np.diff(units), np.diff(units)[0], atol=0.01)


def test_values_reach_the_config_as_a_study_writes_them(tmp_path):
    order = {"values": {"a": {"schedule.order": ["code", "math"]}, "b": {"schedule.order": ["math", "code"]}}}
    steps = {"keys": ["schedule.steps"], "low": 100, "high": 400, "levels": 4, "whole": True}
    space = spec_of(tmp_path, factors={**FACTORS, "order": order, "steps": steps}).space
    point = ((0.2, 0.2, 0.6), 1 / 64, "b", 300.0)
    assert space.grid(point) == {
        "share_math": {"keys": ["data.policy.weights.math"], "values": [0.2]},
        "share_code": {"keys": ["data.policy.weights.code"], "values": [0.2]},
        "share_general": {"keys": ["data.policy.weights.general"], "values": [0.6]},
        "k": {"keys": ["schedule.k"], "values": ["1/64"]},
        "order": {"values": {"b": {"schedule.order": ["math", "code"]}}},
        "steps": {"keys": ["schedule.steps"], "values": [300]},
    }
    assert space.text(point) == "math 20%, code 20%, general 60%, k 1/64, order b, steps 300"


def test_a_large_space_is_filled_evenly(tmp_path):
    factors = {"share": {"shares": THREE, "step": 0.05}, "k": {"keys": ["schedule.k"], "low": 0.001, "high": 1}}
    space = spec_of(tmp_path, factors=factors).space
    found = space.candidates()
    assert len(found) == len(set(found)) > 500
    assert found == space.candidates(), "the same each time"
    share_PS = space.columns(found).share_PS
    assert np.allclose(share_PS.mean(0), 1 / 3, atol=0.03)
    assert np.allclose(share_PS.sum(1), 1)


def test_anchors_lie_where_they_are_meant_to(tmp_path):
    spec = spec_of(tmp_path, anchors={"recipe": {"schedule.k": 0.1}})
    points = {anchor.name: anchor.point for anchor in spec.anchors}
    assert points["proportional"] == ((0.4, 0.2, 0.4), 1 / 16), "3,072, 1,024 and 2,048 examples in fifths"
    assert points["code_alone"][0] == (0, 1, 0)
    assert points["k_0"][1] == 0
    assert points["recipe"] is None
    without = spec_of(tmp_path, factors={"k": FACTORS["k"]})
    outside = {anchor.name: (anchor.point, anchor.alone) for anchor in without.anchors}
    assert outside["math_alone"] == (None, "math") and outside["proportional"] == (None, "")
    assert outside["k_0"][0] == (0.0,)


def test_a_d_optimal_design_tells_more_than_a_random_one(tmp_path):
    space = spec_of(tmp_path).space
    grid, anchors = space.candidates(), [anchor.point for anchor in space.anchors()]

    def information(points):
        x = space.columns(grid).quadratic()
        chosen = (space.columns([*anchors, *points]).quadratic() - x.mean(0)) / x.std(0)
        chosen = np.hstack([np.ones((len(chosen), 1)), chosen])
        return np.linalg.slogdet(chosen.T @ chosen + PRIOR * np.eye(chosen.shape[1]))[1]

    mine = d_optimal(space, anchors, grid, 10)
    random = np.random.default_rng(0)
    others = [information([grid[i] for i in random.choice(len(grid), 10, replace=False)]) for _ in range(50)]
    assert information(mine) > max(others)
    assert len(set(mine)) == 10 and not set(mine) & set(anchors)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_search_is_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path.read_text().startswith("# ")
    spec = read_search(path, SIZES)
    site = StudySite(spec, {"epochs": 3}, lambda: None, screen())
    trials = Search(spec, site, tmp_path).design().trials
    study = site.study(trials)
    assert find_problems_of(study) == []
    assert len(study.runs) == sum(trial.num_runs for trial in trials) <= spec.max_runs - 2 * spec.verify
    for run in study.runs:  # what only compiling would tell
        arguments = run.config["schedule"]["init_args"]
        assert sum(arguments.get(unit) is not None for unit in ("epochs", "steps", "supervised_tokens")) == 1
    alone = [run.config for run in study.runs if run.config_name == "math_alone"]
    assert all(
        c["schedule"]["init_args"].get("order") == ["math"] or c["data"]["policy"]["init_args"]["weights"]["math"] == 1
        for c in alone
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"budjet": {"runs": 3}}, "'budjet' is not a key of a search"),
        ({"budget": {"runs": 0}}, "budget: 0 is not a whole number from 1"),
        ({"budget": {"runs": 3, "tokens": 3}}, "budget: give runs or tokens"),
        ({"budget": None}, "budget: give runs or tokens"),
        ({"factors": {}}, "give factors"),
        ({"factors": {"k": {"keys": "schedule.k"}}}, "factors.k: give shares"),
        ({"factors": {"k": {"keys": ["schedule.k"], "low": 0, "high": 1, "scale": "log"}}}, "above 0 where the scale"),
        ({"factors": {"k": {"keys": ["schedule.k"], "low": 2, "high": 1}}}, "must lie below high"),
        ({"factors": {"k": {"keys": ["schedule.k"], "low": "x", "high": 1}}}, "'x' is not a number"),
        ({"factors": {"k": {"keys": ["schedule.k"], "levels": [0]}}}, "at least two levels"),
        ({"factors": {"o": {"values": {"a": {}}}}}, "at least two values"),
        ({"factors": {"s": {"shares": {"math": [0, 1]}}}}, "at least two abilities"),
        ({"factors": {"s": {"shares": {"math": [0, 1], "cooking": [0, 1]}}}}, "at least two abilities of the data"),
        ({"factors": {"s": {"shares": {"math": [0, 0.2], "code": [0, 0.2]}}}}, "no shares within"),
        ({"factors": {"s": {"shares": {"math": 1, "code": [0, 1]}}}}, "shares.math: give the least and the largest"),
        ({"factors": {"s": {"shares": THREE, "step": 0.3}}}, "must divide 1"),
        ({"factors": {"a/b": FACTORS["k"]}}, "contains '/': give a name"),
        ({"weights": {"cooking": 1}}, "must name abilities of the data"),
        ({"weights": {"math": 0}}, "one more"),
        ({"constraints": {"general": {"no_lower_than": "sideways"}}}, "there is no anchor sideways"),
        ({"constraints": {"general": {"higher_than": 1}}}, "give an ability with no_lower_than"),
        ({"anchors": {"mine": {}}}, "anchors.mine: give what it changes"),
        ({"seeds": [1.5]}, "seeds: give whole numbers"),
        ({"verify": 0}, "verify: 0 is not a whole number"),
        ({"search": "../x"}, "contains '/': give a name"),
    ],
)
def test_bad_files_are_told(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        spec_of(tmp_path, **content)


def test_a_choice_is_one_of_its_names():
    factor = Choice("order", {"a": {}, "b": {}, "c": {}})
    assert [factor.at([draw]) for draw in (0.0, 0.4, 0.99, 1.0)] == ["a", "b", "c", "c"]
    columns = Space((factor,)).columns([("a",), ("c",)])
    assert columns.choice_PK.tolist() == [[0, 0], [0, 1]]


def test_shares_add_up_as_they_are_written():
    thirteenths = Shares("shares", ("math", "code", "general"), (0.0,) * 3, (1.0,) * 3, step=1 / 13)
    assert thirteenths.text((1 / 13, 4 / 13, 8 / 13)) == "math 7.7%, code 30.8%, general 61.5%"
    assert thirteenths.text((0.29, 0.0, 0.71)) == "math 29%, code 0%, general 71%"
