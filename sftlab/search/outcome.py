"""The outcome of a search, as ``search.json``: everything that its report shows, so that reports need no fits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sftlab.files import write_text
from sftlab.report.verdicts import compare_over_seeds
from sftlab.search.decision import WEIGHTED, axes_of, candidates_of, ranges_of, slices_of, words_of
from sftlab.search.observation import Observation, Trial
from sftlab.search.proposal import Beliefs
from sftlab.search.search import Search, decision_row
from sftlab.stats.interval import LEVEL, Mean, Z, student
from sftlab.stats.paired import holm

OUTCOME = "search.json"
NOT_SHOWN = "no difference shown"


def write_outcome(search: Search) -> dict[str, Any]:
    """Write the outcome of a search, and return it."""
    found = outcome_of(search)
    write_text(search.folder / OUTCOME, json.dumps(found, indent=1))
    return found


def outcome_of(search: Search) -> dict[str, Any]:
    """Collect the outcome of a search whose last batch has been run."""
    spec, beliefs = search.spec, search.beliefs()
    axes = axes_of(spec.space, search.candidates)
    observations = search.site.observations(search.trials)
    best = beliefs.best()
    shares = spec.space.shares
    check = _check(search, observations, beliefs)
    return {
        "search": spec.name,
        "decision": words_of(beliefs, spec, axes, check["measured"] if check else ""),
        "ended": search.decisions[-1].words,
        "stopped": _stopped(search),
        "has_effect": beliefs.has_effect,
        "check": check,
        "abilities": beliefs.abilities,
        "weights": spec.weights,
        "simplex": list(shares[0].abilities) if shares else [],
        "constraints": [
            {"text": c.text(), "ability": c.ability, "chance": float(beliefs.feasible_DC[:, best].mean())}
            for c in spec.constraints
        ],
        "surfaces": {
            ability: {
                "form": surface.form,
                "held_out": surface.held_out,
                "noise": surface.noise,
                "widened": surface.widened,
                "effect_p": _finite(beliefs.effects[ability]),
            }
            for ability, surface in beliefs.surfaces.items()
        },
        "noise": beliefs.noise,
        "ranges": ranges_of(beliefs, axes),
        "slices": slices_of(beliefs, axes),
        "candidates": candidates_of(beliefs, spec.space),
        "best_anchor": beliefs.best_anchor(),
        "trials": [_trial(search, trial, observations) for trial in search.trials],
        "batches": [decision_row(one) for one in search.decisions],
        "num_runs": sum(trial.num_runs for trial in search.trials),
        "max_runs": spec.max_runs,
        "max_tokens": spec.max_tokens,
        "tokens": dict(zip(("all", "once"), search.site.saved_tokens(search.trials), strict=True)),
    }


def _stopped(search: Search) -> str:
    """Say why the search made no more runs."""
    words = next((one.words for one in search.decisions if one.kind == "verification"), search.decisions[-1].words)
    return words.partition(". ")[0].removesuffix(".") + "."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _trial(search: Search, trial: Trial, observations: Sequence[Observation]) -> dict[str, Any]:
    mine = [o for o in observations if o.trial == trial.name]
    batch = next(i for i, b in enumerate(search.decisions, 1) if trial in b.trials)
    values = {ability: fmean(o.values[ability] for o in mine) for ability in mine[0].values}
    shares = [] if trial.point is None else [
        share for f, v in zip(search.spec.space.factors, trial.point, strict=True) if f in search.spec.space.shares
        for share in v  # type: ignore[union-attr]
    ]  # fmt: skip
    return {
        "name": trial.name,
        "why": trial.why,
        "batch": batch,
        "text": search.spec.space.text(trial.point) if trial.point is not None else "outside of the space",
        "shares": shares,
        "seeds": list(trial.seeds),
        "scores": values,
        WEIGHTED: weighted(values, search.spec.weights),
    }


def weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Compute the weighted mean of scores."""
    total = sum(weights.get(ability, 0.0) for ability in values)
    return sum(weights.get(ability, 0.0) * value for ability, value in values.items()) / total


def _check(search: Search, observations: Sequence[Observation], beliefs: Beliefs) -> dict[str, Any] | None:
    """Compare the proposal with the best anchor on fresh seeds; None if there was no check."""
    pair = [trial for trial in search.trials if trial.why == "verification"]
    if len(pair) != 2:
        return None
    proposal, anchor = ([o for o in observations if o.trial == trial.name] for trial in pair)
    name = pair[1].anchor.name if pair[1].anchor else pair[1].name
    rows = [_compared(search.folder, ability, anchor, proposal) for ability in proposal[0].values]
    for row, p in zip(rows, holm([_number(row["p"]) for row in rows]), strict=True):
        row["p_corrected"] = _finite(p)
        low_high = row["low"] is not None and not row["low"] <= 0 <= row["high"]
        row["verdict"] = NOT_SHOWN if not (p < LEVEL and low_high) else "better" if row["difference"] > 0 else "worse"
    weights = search.spec.weights
    measured = [weighted(o.values, weights) for o in proposal]
    whole = student([one - weighted(o.values, weights) for one, o in zip(measured, anchor, strict=True)])
    verdict = _verdict(whole)
    ends = "" if math.isnan(whole.low) else f" ({100 * whole.low:+.1f} to {100 * whole.high:+.1f}, 95 % over seeds)"
    told = "; ".join(f"{row['ability']} {100 * row['difference']:+.1f} ({row['verdict']})" for row in rows)
    seeds = ", ".join(map(str, pair[0].seeds))
    predicted = f"{beliefs.utility_DC[:, beliefs.best()].mean():.1%}"
    mine, theirs = f"{fmean(measured):.1%}", f"{fmean(weighted(o.values, weights) for o in anchor):.1%}"
    words = (
        f"Checked with fresh seeds ({seeds}): the proposal has {mine} where {predicted} was predicted"
        f"{_surprises(proposal, beliefs)}. Against {name}, {_which_anchor(beliefs, bool(search.spec.constraints))} "
        f"(it has {theirs}): **{verdict}**, {100 * whole.value:+.1f} points{ends}; {told}."
        f"{_floor_words(search, name, rows)}"
    )
    if verdict == NOT_SHOWN and (beliefs.likely_anchors().any() or not search.spec.constraints):
        words += f" As far as these seeds show, {name} does as well: take either, or check with more seeds (verify)."
    return {
        "anchor": name,
        "measured": f"Measured with {len(measured)} fresh seeds: {mine}. ",
        "seeds": list(pair[0].seeds),
        "rows": rows,
        "difference": whole.value,
        "low": _finite(whole.low),
        "high": _finite(whole.high),
        "verdict": verdict,
        "words": words,
    }


def _surprises(proposal: Sequence[Observation], beliefs: Beliefs) -> str:
    """Describe abilities whose scores differ from the predictions by more than the noise of so many runs."""
    best, told = beliefs.best(), []
    for number, ability in enumerate(beliefs.abilities):
        draws_D = beliefs.score_DAC[:, number, best]
        spread = math.hypot(float(draws_D.std()), beliefs.surfaces[ability].noise / len(proposal) ** 0.5)
        value = fmean(o.values[ability] for o in proposal)
        if abs(value - draws_D.mean()) > Z * spread:
            told.append(f"{ability} has {value:.1%} and not {draws_D.mean():.1%}")
    doubt = "more than noise, so what is predicted for it and its neighbours is in doubt; nothing predicted here has "
    doubt += "seen the check"
    return f" ({'; '.join(told)}: {doubt})" if told else ""


def _which_anchor(beliefs: Beliefs, has_constraints: bool) -> str:
    """Describe which of the anchors the check ran against."""
    num_likely = int(beliefs.likely_anchors().sum())
    if not has_constraints:
        return "the best of the anchors"
    if num_likely == 0:
        return "the best of the anchors, none of which likely keeps the constraints"
    return "the only anchor that likely keeps the constraints" if num_likely == 1 else (
        f"the best of the {num_likely} anchors that likely keep the constraints"
    )  # fmt: skip


def _floor_words(search: Search, anchor: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe whether the check shows that constraints against the anchor that it ran are kept."""
    told = ""
    for constraint in search.spec.constraints:
        for row in rows:
            if constraint.anchor == anchor and row["ability"] == constraint.ability and row["low"] is not None:
                kept, broken = row["low"] >= -constraint.number, row["high"] < -constraint.number
                mean = "kept" if row["difference"] >= -constraint.number else "broken"
                verdict = "is kept" if kept else "is broken" if broken else f"is {mean} on average, not yet for sure"
                ends = f"{100 * row['difference']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
                limit = f"; the limit is {-100 * constraint.number:+.1f}"
                told += f" The constraint, {constraint.text()}, {verdict}: measured {ends}{limit}."
    return told


def _verdict(difference: Mean) -> str:
    if math.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return NOT_SHOWN
    return "better" if difference.value > 0 else "worse"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _compared(folder: Path, ability: str, a: Sequence[Observation], b: Sequence[Observation]) -> dict[str, Any]:
    """Compare one ability: problem by problem if verdicts are kept, else seed by seed."""
    files = [[o.problems.get(ability) for o in side] for side in (a, b)]
    if all(file for side in files for file in side):
        before, after = ([folder / file[0] for file in side if file] for side in files)
        found = compare_over_seeds(before, after, str(files[0][0][1] if files[0][0] else ""))
        about = {"difference": found.difference, "low": found.low, "high": found.high, "p": _finite(found.p_value)}
        return {"ability": ability, **about, "method": found.method}
    whole = student([y.values[ability] - x.values[ability] for x, y in zip(a, b, strict=True)])
    p = math.nan
    if whole.error > 0:
        from scipy.stats import t

        p = float(2 * t.sf(abs(whole.value) / whole.error, len(a) - 1))
    ends = {"low": _finite(whole.low), "high": _finite(whole.high), "p": _finite(p)}
    return {"ability": ability, "difference": whole.value, **ends, "method": "Student's t, seed by seed"}
