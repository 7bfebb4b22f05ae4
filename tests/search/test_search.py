"""A search on surfaces that are known: how near it comes with how few runs, and that a kill changes nothing."""

import json
import re

import numpy as np
import pytest
from surfaces import Killed, Synthetic, conflict, flat, regret_of, search_of, spec_of

from sftlab.search.outcome import outcome_of, write_outcome
from sftlab.search.search import DECISIONS, Search

FEW = {"budget": {"runs": 21}, "verify": 2, "replicates": 2, "batch": 3}  # a fifth of the 105 candidates


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that ran without a break, and what it found."""
    search = search_of(tmp_path_factory.mktemp("search"), **FEW)
    search.run()
    return search, outcome_of(search)


def test_a_fifth_of_the_grids_runs_finds_a_composition_whose_regret_is_inside_noise(finished):
    search, found = finished
    assert found["num_runs"] <= len(search.candidates) / 5
    assert regret_of(search, conflict) <= 1.96 * search.beliefs().noise
    assert found["has_effect"] and "Proposal:" in found["decision"]


def test_the_decision_names_what_is_narrowed_down_and_what_is_noise(finished):
    _, found = finished
    of = {one["axis"]: one for one in found["ranges"]}
    assert not of["math"]["is_noise"] and not of["general"]["is_noise"]
    told = found["decision"]
    for one in found["ranges"]:
        assert one["axis"] in told
    inside = [c for c in found["candidates"] if c["inside_noise"]]
    assert 1 <= len(inside) < len(found["candidates"])
    assert sum(c["best"] for c in found["candidates"]) == 1


def test_every_run_is_named_with_why_and_the_check_has_seeds_of_its_own(finished):
    _, found = finished
    assert sum(len(t["seeds"]) for t in found["trials"]) == found["num_runs"] <= 21
    anchors = {t["name"] for t in found["trials"] if t["why"] == "anchor"}
    assert anchors == {"proportional", "math_alone", "code_alone", "general_alone", "k_0"}
    before = {seed for t in found["trials"] if t["why"] != "verification" for seed in t["seeds"]}
    check = [t for t in found["trials"] if t["why"] == "verification"]
    assert not before & {seed for t in check for seed in t["seeds"]}
    assert (found["check"] is None) == (not check)


def test_the_check_holds_the_proposal_against_its_prediction_and_the_constraint(tmp_path):
    limit = {"general": {"no_lower_than": "alone", "minus": 0.05}}
    search = search_of(tmp_path, constraints=limit, **FEW)
    search.run()
    found, beliefs = outcome_of(search), search.beliefs()
    told, predicted = found["check"], beliefs.utility_DC[:, beliefs.best()].mean()
    proposal = next(t for t in found["trials"] if t["name"] == "proposal")
    assert f"the proposal has {proposal['weighted mean']:.1%} where {predicted:.1%} was predicted" in told["words"]
    assert f"Measured with 2 fresh seeds: {proposal['weighted mean']:.1%}." in found["decision"]
    low = next(row["low"] for row in told["rows"] if row["ability"] == "general")
    assert told["anchor"] == "general_alone" and (" is kept: " in told["words"]) == (low >= -0.05)
    assert ("general_alone does as well: take either" in told["words"]) == (told["verdict"] == "no difference shown")


@pytest.mark.slow
def test_killed_at_ten_instants_it_decides_the_same(finished, tmp_path):
    whole, found = finished
    spec, kills = spec_of(tmp_path, **FEW), 0
    for wait in (1, 3, 2, 1, 4, 2, 1, 1, 2, 1, 10_000):
        site = Synthetic(spec, conflict, tmp_path, kill_at=wait)
        search = Search(spec, site, tmp_path)
        try:
            search.run()
            break
        except Killed:
            kills += 1
    assert kills >= 10
    assert (tmp_path / DECISIONS).read_text() == (whole.folder / DECISIONS).read_text()
    assert json.dumps(outcome_of(search)) == json.dumps(found)


def test_killed_while_a_decision_is_written_it_decides_the_same(finished, tmp_path, monkeypatch):
    whole, _ = finished
    text = (whole.folder / DECISIONS).read_text()
    search = search_of(tmp_path, **FEW)

    def torn(path, content):
        raise Killed

    monkeypatch.setattr("sftlab.search.search.write_text", torn)
    with pytest.raises(Killed):
        search.run()
    assert not (tmp_path / DECISIONS).exists()
    monkeypatch.undo()
    (tmp_path / DECISIONS).write_text(text)
    again = search_of(tmp_path, **FEW)
    again.read()
    again.site.carry_out(again.trials)
    assert (again.decisions[-1].kind, len(again.decisions)) == ("end", len(text.splitlines()))


def test_without_any_effect_of_the_mixture_it_says_so(tmp_path):
    search = search_of(tmp_path, truth=flat, **FEW)
    search.run()
    found = write_outcome(search)
    assert not found["has_effect"]
    assert found["decision"].startswith("**These runs show no effect of the composition on any ability**")
    assert found["check"] is None and found["num_runs"] <= 21
    assert found["num_runs"] >= 15, "it looks on while it may"


def test_constraints_are_kept(tmp_path):
    limit = {"general": {"no_lower_than": "alone", "minus": 0.08}}
    search = search_of(tmp_path, constraints=limit, **FEW)
    search.run()
    beliefs = search.beliefs()
    point = search.candidates[beliefs.best()]
    share, k = dict(zip([f.name for f in search.spec.space.factors], point, strict=True)).values()
    unit = search.spec.space.factors[1].unit(k)
    alone = conflict((0, 0, 1), 0.5)["general"]  # the anchor has k in the middle
    assert conflict(share, unit)["general"] >= alone - 0.08 - 1.96 * beliefs.noise * 3
    assert conflict(share, unit)["general"] > conflict((0.4, 0.4, 0.2), unit)["general"]
    found, likely_C = outcome_of(search), beliefs.likely()
    alike = [c for c in found["candidates"] if c["inside_noise"] and not c["best"]]
    assert all(c["chance"] >= 0.5 for c in alike)
    counted = re.search(
        r"Of the (\d+) other candidates that reach these 50%, (\d+) (is|are) not shown", found["decision"]
    )
    assert counted and [int(n) for n in counted.groups()[:2]] == [likely_C.sum() - 1, len(alike)]
    costs = float(re.search(r"keeping it is predicted to cost ([\d.]+) points", found["decision"]).group(1))
    shown_C = np.round(100 * beliefs.utility_DC.mean(0), 1)
    assert costs == pytest.approx(shown_C.max() - shown_C[beliefs.best()], abs=1e-6)


def test_a_budget_in_tokens_is_kept(tmp_path):
    search = search_of(tmp_path, **{**FEW, "budget": {"tokens": 20_000}})  # 1,000 a run
    search.run()
    assert search.site.tokens([], search.trials) <= 20_000
    assert search.site.tokens([], search.trials) > 12_000


def test_a_budget_that_leaves_nothing_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"anchors take 7 runs \(replicates: 2\) and the check 4"):
        search_of(tmp_path, **{**FEW, "budget": {"runs": 11}}).run()


def test_decisions_of_another_search_are_not_taken_up(finished, tmp_path):
    whole, _ = finished
    (tmp_path / DECISIONS).write_text((whole.folder / DECISIONS).read_text())
    with pytest.raises(ValueError, match="decisions of another search"):
        search_of(tmp_path, **{**FEW, "weights": {"math": 1}}).run()
