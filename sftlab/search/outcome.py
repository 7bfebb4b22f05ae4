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
from sftlab.search.decision import WEIGHTED, axes_of, candidates_of, ranges_of, slices_of
from sftlab.search.findings import NOT_SHOWN, Findings, Measured
from sftlab.search.observation import Observation, Trial
from sftlab.search.proposal import Beliefs
from sftlab.search.search import Search, decision_row
from sftlab.stats.interval import LEVEL, Mean, Z, student
from sftlab.stats.paired import holm

OUTCOME = "search.json"


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
    measured = [_measured(search, trial, observations) for trial in search.trials]
    findings = Findings(beliefs, spec, axes, measured, check)
    if check:
        check["words"] = "\n".join(findings.check_lines())
    return {
        "search": spec.name,
        "decision": "\n".join(findings.lines()),
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
        "trials": [_trial(search, one) for one in measured],
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


def _measured(search: Search, trial: Trial, observations: Sequence[Observation]) -> Measured:
    mine = [o for o in observations if o.trial == trial.name]
    values = {ability: fmean(o.values[ability] for o in mine) for ability in mine[0].values}
    return Measured(trial, values, weighted(values, search.spec.weights))


def _trial(search: Search, measured: Measured) -> dict[str, Any]:
    trial = measured.trial
    batch = next(i for i, b in enumerate(search.decisions, 1) if trial in b.trials)
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
        "scores": measured.scores,
        WEIGHTED: measured.average,
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
    best = beliefs.best()
    for row, p in zip(rows, holm([_number(row["p"]) for row in rows]), strict=True):
        row["p_corrected"] = _finite(p)
        row |= _predicted(row["ability"], proposal, beliefs)
        row |= _judged(row, p, len(rows))
    weights = search.spec.weights
    measured, theirs = ([weighted(o.values, weights) for o in side] for side in (proposal, anchor))
    whole = student([one - other for one, other in zip(measured, theirs, strict=True)])
    return {
        "anchor": name,
        "measured": fmean(measured),
        "predicted": float(beliefs.utility_DC[:, best].mean()),
        "anchor_measured": fmean(theirs),
        "seeds": list(pair[0].seeds),
        "rows": rows,
        "difference": whole.value,
        "low": _finite(whole.low),
        "high": _finite(whole.high),
        "verdict": _verdict(whole),
    }


def _predicted(ability: str, proposal: Sequence[Observation], beliefs: Beliefs) -> dict[str, Any]:
    """Return an ability's score in the check beside its prediction, and whether they differ by more than noise."""
    draws_D = beliefs.score_DAC[:, beliefs.abilities.index(ability), beliefs.best()]
    spread = math.hypot(float(draws_D.std()), beliefs.surfaces[ability].noise / len(proposal) ** 0.5)
    value, mean = fmean(o.values[ability] for o in proposal), float(draws_D.mean())
    return {"measured": value, "predicted": mean, "is_surprise": bool(abs(value - mean) > Z * spread)}


def _judged(row: Mapping[str, Any], p: float, num_compared: int) -> dict[str, str]:
    """Return the verdict on a difference; where its interval alone would show one, say why it does not count."""
    apart = row["low"] is not None and not row["low"] <= 0 <= row["high"]
    if apart and p < LEVEL:
        verdict = "better" if row["difference"] > 0 else "worse"
        return {"verdict": verdict, "words": verdict}
    why = f" after correction for {num_compared} comparisons, p = {p:.3f}" if apart and math.isfinite(p) else ""
    return {"verdict": NOT_SHOWN, "words": f"{NOT_SHOWN}{why}"}


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
        return {"ability": ability, **about, "method": found.method, "num_problems": found.num_problems}
    whole = student([y.values[ability] - x.values[ability] for x, y in zip(a, b, strict=True)])
    p = math.nan
    if whole.error > 0:
        from scipy.stats import t

        p = float(2 * t.sf(abs(whole.value) / whole.error, len(a) - 1))
    ends = {"low": _finite(whole.low), "high": _finite(whole.high), "p": _finite(p)}
    return {
        "ability": ability,
        "difference": whole.value,
        **ends,
        "method": "Student's t, seed by seed",
        "num_problems": None,
    }
