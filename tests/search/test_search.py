"""A search on surfaces that are known: how near it comes with how few runs, and that a kill changes nothing."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from surfaces import Killed, Synthetic, conflict, flat, regret_of, search_of, spec_of

from sftlab.search.findings import Findings, Measured
from sftlab.search.observation import Trial
from sftlab.search.outcome import outcome_of, write_outcome
from sftlab.search.search import DECISIONS, Search
from sftlab.search.spec import Constraint

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


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """A finished search with a constraint, and what it found."""
    limit = {"general": {"no_lower_than": "alone", "minus": 0.05}}
    search = search_of(tmp_path_factory.mktemp("bound"), constraints=limit, **FEW)
    search.run()
    return search, outcome_of(search)


def test_the_check_holds_the_proposal_against_its_prediction_and_the_constraint(bound):
    search, found = bound
    beliefs = search.beliefs()
    told, predicted = found["check"], beliefs.utility_DC[:, beliefs.best()].mean()
    proposal = next(t for t in found["trials"] if t["name"] == "proposal")
    score = f"an average score of {proposal['weighted mean']:.1%} where {predicted:.1%} was predicted"
    assert score in told["words"] and "**Measured with 2 fresh seeds**" in found["decision"]
    low = next(row["low"] for row in told["rows"] if row["ability"] == "general")
    assert told["anchor"] == "general_alone"
    assert ("is kept by the check: " in found["decision"]) == (low >= -0.05)
    assert (f"{told['anchor']} does as well: take either" in found["decision"]) == (
        told["verdict"] == "no difference shown"
    )


def test_what_breaks_the_constraint_is_named_with_what_it_scored_and_advice_comes_last(bound):
    search, found = bound
    floor = next(iter(search.beliefs().floors.values()))
    lines = {line.split("**")[1].split(" of ")[0]: line for line in found["decision"].split("\n")}
    assert next(iter(lines)).startswith("Proposal: ") and "Next" not in [*lines][:-1]
    seen = [t for t in found["trials"] if t["why"] != "verification"]
    better = [t for t in seen if t["weighted mean"] > found["check"]["measured"] and t["scores"]["general"] < floor]
    best = max(better, key=lambda t: t["weighted mean"])
    assert f"{best['weighted mean']:.1%}, general {best['scores']['general']:.1%}, below" in lines["Not compared"]
    assert f"{len(better)} of these scored higher" in lines["Not compared"]
    both = re.search(r"predicted to cost ([\d.]+) points, and ([\d.]+) from what the check", lines["Price"]).groups()
    apart = 100 * (search.beliefs().utility_DC[:, search.beliefs().best()].mean() - found["check"]["measured"])
    assert float(both[1]) - float(both[0]) == pytest.approx(apart, abs=0.11)


def test_a_run_that_kept_the_constraint_and_beat_the_proposal_is_told_and_advised():
    beliefs = SimpleNamespace(
        candidates=[(0,), (1,)], abilities=["math"], has_effect=True, anchors=["a"], floors={},
        utility_DC=np.array([[0.2, 0.3]] * 8), feasible_DC=np.array([[True, False]] * 5 + [[False, True]] * 3),
    )  # fmt: skip
    constraint = Constraint("math", "", 0.1)
    beliefs.floors[constraint], beliefs.best = 0.1, lambda: 0
    beliefs.chance, beliefs.likely = lambda: beliefs.feasible_DC.mean(0), lambda: np.array([True, False])
    beliefs.inside_noise, beliefs.likely_anchors = beliefs.likely, lambda: np.array([True])
    spec = SimpleNamespace(constraints=[constraint], weights={"math": 1.0}, space=SimpleNamespace(text=str))
    run = Measured(Trial("p07", (1,), (1,), "improvement"), {"math": 0.25}, 0.25)
    row = {"ability": "math", "measured": 0.18, "predicted": 0.2, "is_surprise": False, "num_problems": 90}
    row |= {"difference": 0.01, "low": -0.01, "high": 0.03, "words": "no difference shown"}
    check = {"anchor": "a", "measured": 0.18, "predicted": 0.2, "anchor_measured": 0.1, "seeds": [4], "rows": [row],
             "difference": 0.08, "low": 0.05, "high": 0.1, "verdict": "better"}  # fmt: skip
    told = "\n".join(Findings(beliefs, spec, [], [run], check).lines())
    assert "p07, 1 seed: 25.0%, math 25.0%, above the limit" in told or "p07 ((1,); 1 seed) with 25.0%" in told
    assert "Run p07 with more seeds before you take the proposal" in told.split("\n")[-1]
    low = Findings(beliefs, spec, [], [replace(run, scores={"math": 0.05})], check)
    assert "Run p07" not in "\n".join(low.lines())


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
    counted = re.search(r"of the (\d+) other candidates that reach 50%, (\d+) (is|are) not shown", found["decision"])
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
