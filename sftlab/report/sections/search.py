"""What a search found: the decision in words, its surfaces, which factors matter, the front, and its basis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sftlab.report.evidence import Evidence
from sftlab.report.exhibit import Cell, Table
from sftlab.report.section import Drawing, Figure, Section
from sftlab.report.surfaces import change_figure, prediction_figure, slice_figure, ternary_figure
from sftlab.report.text import duration, number, p_text, with_interval

OUTCOME = "search.json"
WEIGHTED = "weighted mean"
_MOST_ROWS = 12


class Search(Figure):
    """The outcome of ``sftlab search``."""

    def section(self, evidence: Evidence) -> Section:
        """Show all parts, or what is missing."""
        section = Section("search", "What the search found")
        path = evidence.folder / OUTCOME
        if not path.is_file():
            section.missing.append(f"{OUTCOME}: the search has not ended; the same search command continues it")
            return section
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            _fill(section, found, evidence)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            shown = f"{type(error).__name__}: {error}"
            return Section("search", section.title, missing=[f"{path} is damaged ({shown}); run the search again"])
        return section


def _fill(section: Section, found: dict[str, Any], evidence: Evidence) -> None:
    section.findings += str(found["decision"]).split("\n")
    if found["has_effect"]:
        section.findings.append(_factor_words(found))
    section.findings.append(_cost_words(found, evidence))
    section.warnings += _other_weights(found, evidence)
    bound = " and ".join(constraint["text"] for constraint in found["constraints"])
    section.lead = (
        f"{f'Constraint: {bound}. ' * bool(bound)}Anchors are mixtures that are run whatever comes out: each ability "
        "alone, the data's own proportions, and the zeros of other factors. Surfaces are fitted to the runs of anchors "
        "and other candidates; the rest is predicted. An interval is where the mean over many seeds lies, with 95 %, "
        "for the problems that were asked. In the check, the interval of an ability also covers other problems of its "
        f"kind. The average score is the mean of the abilities' scores; their weights: {_weight_words(found)}."
    )
    section.parts.append(_range_table(found))
    slices = [one | {"of": _mean_title(found)} if one["of"] == WEIGHTED else one for one in found["slices"]]
    if len(found["simplex"]) == 3:
        section.parts.append(_ternary(found))
    figure, spots = slice_figure(slices)
    caption = (
        "Predicted score, averaged over all candidates with that value (or with values near it, where there are many), "
        "whether they keep constraints or not, with 95 % intervals. "
        "Where the best candidates lie is in their table, not here."
    )
    section.parts.append(
        Drawing("search-slices", "Slices of the surfaces", caption, figure, _slice_numbers(slices), spots)
    )
    figure, spots = change_figure(slices)
    caption = (
        "From the value with the lowest predicted score to that with the highest, in points, with the interval of this "
        "difference: its size without its direction, which the slices show. Where it holds 0, no effect is shown. The "
        "share of one ability changes only with those of others."
    )
    section.parts.append(
        Drawing("search-changes", "Which factors matter", caption, figure, _change_numbers(slices), spots)
    )
    if len(found["abilities"]) > 1:
        anchors = {t["name"]: t["scores"] for t in found["trials"] if t["why"] == "anchor"}
        figure, spots = prediction_figure(found["candidates"], found["abilities"], anchors)
        caption = (
            "Predicted scores of all candidates. On the front: no other candidate is at least as good in all abilities "
            "and better in one, so that a candidate on it may look beaten where two abilities alone are drawn."
        )
        numbers = _candidate_numbers(found)
        section.parts.append(
            Drawing("search-front", "Pareto front of the predictions", caption, figure, numbers, spots)
        )
    section.parts += [_best_table(found), *_check_tables(found), _surface_table(found), _batch_table(found)]
    section.parts.append(_run_table(found, evidence))


def _other_weights(found: dict[str, Any], evidence: Evidence) -> list[str]:
    """Warn if a reader's weights are not those that the search decided for."""
    own, asked = (_weights(found, weights) for weights in (found["weights"] or {}, evidence.weights))
    if not evidence.weights or asked == own:
        return []
    words = ", ".join(f"{name}={value:g}" for name, value in own.items())
    return [
        f"The search decided for its own weights ({words}), not for those of this report. Give yours in its file and "
        "search under another --name: runs that both make are reused. Below: the settings that were run, by yours."
    ]


def _weights(found: dict[str, Any], given: Mapping[str, float]) -> dict[str, float]:
    return {ability: float(given.get(ability, 1.0)) for ability in found["abilities"]}


def _weight_words(found: dict[str, Any]) -> str:
    weights = _weights(found, found["weights"] or {})
    return "all the same" if len(set(weights.values())) == 1 else ", ".join(f"{a} {w:g}" for a, w in weights.items())


def _mean_title(found: dict[str, Any]) -> str:
    same = len(set(_weights(found, found["weights"] or {}).values())) == 1
    return "average score" if same else "weighted average score"


def _factor_words(found: dict[str, Any]) -> str:
    """Describe the effect of each factor on the average score, the largest first, and what it does to abilities."""
    mine = sorted((one for one in found["slices"] if one["of"] == WEIGHTED), key=lambda one: -one["change"])
    told: dict[bool, list[str]] = {True: [], False: []}
    for one in mine:
        is_shown = not one["change_low"] <= 0 <= one["change_high"]
        told[is_shown].append(f"{_axis_name(one)} by {_points(one)}" if is_shown else _axis_name(one))
    title = _mean_title(found)
    words = (
        f"**Factors:** over all candidates the {title} is changed by {'; '.join(told[True]) or 'no factor for sure'}."
    )
    for one in mine:
        if one["change_low"] <= 0 <= one["change_high"]:
            words += f" {_axis_name(one).capitalize()} shows no net effect on the {title}{_ability_words(found, one)}."
    return words


def _ability_words(found: dict[str, Any], axis: dict[str, Any]) -> str:
    """Describe what a factor without net effect does to each ability, where that is shown."""
    told = {"raises": [], "lowers": [], "changes": []}  # type: dict[str, list[str]]
    for one in found["slices"]:
        is_shown = not one["change_low"] <= 0 <= one["change_high"]
        if one["of"] != WEIGHTED and is_shown and (one["axis"], one["is_share"]) == (axis["axis"], axis["is_share"]):
            means = one["mean"]
            rises = means.index(max(means)) > means.index(min(means))
            verb = "changes" if _is_choice(found, one) else "raises" if rises else "lowers"
            told[verb].append(f"{one['of']} by {_points(one)}")
    parts = [f"{verb} {', '.join(some)}" for verb, some in told.items() if some]
    return f": it {' and '.join(parts)}" if parts else ", nor on any ability"


def _is_choice(found: dict[str, Any], one: dict[str, Any]) -> bool:
    """Return whether a factor's values are options, which have no order."""
    mine = [r for r in found["ranges"] if (r["axis"], r["is_share"]) == (one["axis"], one["is_share"])]
    return any(r["options"] for r in mine)


def _axis_name(one: dict[str, Any]) -> str:
    return f"the share of {one['axis']}" if one["is_share"] else str(one["axis"])


def _points(one: dict[str, Any]) -> str:
    return f"{100 * one['change']:.1f} points ({100 * one['change_low']:.1f} to {100 * one['change_high']:.1f})"


def _cost_words(found: dict[str, Any], evidence: Evidence) -> str:
    all_tokens, once = found["tokens"]["all"], found["tokens"]["once"]
    budget = f" of at most {found['max_runs']}" if found["max_runs"] else ""
    seconds = sum(s.seconds or 0.0 for cost in evidence.costs for s in cost.stages if not s.reused)
    took = f", {duration(seconds)} of training and scoring" if seconds else ""
    saved = f"; sharing stages saved {all_tokens - once:,}" if all_tokens > once else ""
    most = f" of at most {found['max_tokens']:,}" if found.get("max_tokens") else ""
    cells = f"{len(found['candidates'])} candidates"
    checks = sum(len(t["seeds"]) for t in found["trials"] if t["why"] == "verification")
    parts = f" ({found['num_runs'] - checks} to search, {checks} to check)" if checks else ""
    seen = [t for t in found["trials"] if t["why"] != "verification"]
    once_run = sum(len(t["seeds"]) == 1 for t in seen)
    rests = f" What is predicted rests on {len(seen)} compositions, {once_run} of them run with one seed."
    stopped = f" Why it stopped: {found['stopped']}" if found.get("stopped") else ""
    return (
        f"It took {found['num_runs']} runs{budget}{parts}; most of the {cells} are predicted and not run.{rests} "
        f"{once:,} tokens trained{most}{saved}{took}.{stopped}"
    )


def _range_table(found: dict[str, Any]) -> Table:
    rows = []
    for one in found["ranges"]:
        places = ", ".join(one["options"]) or (
            one["low"] if one["low"] == one["high"] else f"{one['low']} to {one['high']}"
        )
        name = f"share of {one['axis']}" if one["is_share"] else one["axis"]
        seen = "no, nothing is shown" if one["is_noise"] else "yes"
        rows.append([name, one["best"], places, one.get("all", "-"), seen])
    header = ["factor", "proposal", "not shown to be worse", "all candidates", "narrowed down"]
    return Table("search-decision", "The decision, factor by factor", header, rows)


def _ternary(found: dict[str, Any]) -> Drawing:
    best = next(c for c in found["candidates"] if c["best"])
    mine = [c for c in found["candidates"] if c["rest"] == best["rest"]]
    if len(mine) < 6:
        mine = found["candidates"]
    panels = [(name, np.array([c["scores"][name] for c in mine])) for name in found["abilities"]]
    panels.append((_mean_title(found), np.array([c[WEIGHTED] for c in mine])))
    shares_P3 = np.array([c["shares"] for c in mine])[:, :3]
    placed = [t for t in found["trials"] if t["shares"]]
    runs_R3 = np.array([t["shares"] for t in placed])[:, :3]
    checks_R = np.array([t["why"] == "verification" for t in placed])
    told = [c["text"] for c in mine]
    breaks_P = np.array([not c["likely"] for c in mine])
    best_3 = np.array(best["shares"])[:3]
    figure, spots = ternary_figure(found["simplex"], shares_P3, panels, runs_R3, checks_R, best_3, told, breaks_P)
    rest = f" Other factors as in the proposal: {', '.join(best['rest'])}." if best["rest"] and len(mine) > 5 else ""
    crosses = ", crosses are candidates that likely break a constraint" if breaks_P.any() else ""
    caption = (
        "Above: the predicted score. Below: half the width of its 95 % interval, in points. Dots are the runs"
        f"{', whatever their other factors' * bool(best['rest'])}"
        f"{'; squares those of the check, which the surfaces were not fitted to' * bool(checks_R.any())}; the ring is "
        f"the proposal{crosses}.{rest}"
    )
    return Drawing(
        "search-ternary", "Surfaces over the shares", caption, figure, _candidate_numbers(found, mine), spots
    )


def _slice_numbers(slices: Sequence[dict[str, Any]]) -> list[dict[str, Cell]]:
    return [
        {"axis": one["axis"], "of": one["of"], "place": text, "mean": mean, "low": low, "high": high}
        for one in slices
        for text, mean, low, high in zip(one["texts"], one["mean"], one["low"], one["high"], strict=True)
    ]


def _change_numbers(slices: Sequence[dict[str, Any]]) -> list[dict[str, Cell]]:
    return [{name: one[name] for name in ("axis", "of", "change", "change_low", "change_high")} for one in slices]


def _candidate_numbers(found: dict[str, Any], some: Sequence[dict[str, Any]] | None = None) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for c in some if some is not None else found["candidates"]:
        row: dict[str, Cell] = {"composition": c["text"], "on_front": c["on_front"], "keeps_constraints": c["chance"]}
        row["inside_noise"] = "yes" if c["inside_noise"] else "no"
        for name, ends in (*c["scores"].items(), (WEIGHTED, c[WEIGHTED])):
            row |= dict(zip((name, f"{name} low", f"{name} high"), ends, strict=True))
        rows.append(row)
    return rows


def _best_table(found: dict[str, Any]) -> Table:
    """Return the table of the best candidates."""
    ranked = sorted(found["candidates"], key=lambda c: (-(c["likely"]), -c[WEIGHTED][0]))
    is_bound = bool(found["constraints"])
    num_likely = sum(c["likely"] for c in ranked)
    shown = ranked[: num_likely if is_bound and _MOST_ROWS < num_likely <= 2 * _MOST_ROWS else _MOST_ROWS]
    rows = [
        [c["text"], _interval(c[WEIGHTED]), *([f"{c['chance']:.0%}"] if is_bound else []),
         "yes" if c["inside_noise"] else "no", *(_interval(c["scores"][name]) for name in found["abilities"]),
         f"{c['on_front']:.0%}"]
        for c in shown
    ]  # fmt: skip
    header = [
        "composition",
        _mean_title(found),
        *(["keeps constraints"] if is_bound else []),
        "not shown to be worse",
        *found["abilities"],
        "on the front",
    ]
    first = f", first the {num_likely} that likely keep the constraints" if is_bound else ""
    notes = [
        f"{len(rows)} of {len(ranked)} candidates, by predicted {_mean_title(found)}{first}; the CSV has all.",
        f"{'Keeps constraints, on' if is_bound else 'On'} the front: in how many of the draws of the surfaces. Not "
        f"shown to be worse: the 95 % interval of the difference to the first holds 0"
        f"{', and the constraints are likely kept' if is_bound else ''}.",
    ]
    return Table("search-candidates", "The best candidates, predicted", header, rows, notes, _candidate_numbers(found))


def _interval(ends: Sequence[float]) -> str:
    mean, low, high = ends
    return with_interval(mean, low, high, 1)


def _check_tables(found: dict[str, Any]) -> list[Table]:
    check = found["check"]
    if not check:
        return []
    rows = [
        [
            r["ability"],
            _signed(r),
            p_text(np.nan if r["p_corrected"] is None else r["p_corrected"]),
            r.get("words", r["verdict"]),
            r["method"],
        ]
        for r in check["rows"]
    ]
    rows.append([_mean_title(found), _signed(check), "-", check["verdict"], "Student's t over the seeds"])
    title = f"The check: proposal minus {check['anchor']}, fresh seeds {', '.join(map(str, check['seeds']))}"
    notes = ["Each interval is of its ability alone. Verdicts go by p, which is corrected for the number of abilities."]
    header = ["", "difference (95 % each)", "p (Holm)", "verdict", "method"]
    return [Table("search-check", title, header, rows, notes)]


def _signed(row: dict[str, Any]) -> str:
    low, high = (np.nan if row[end] is None else row[end] for end in ("low", "high"))
    return with_interval(row["difference"], low, high, 1, signed=True)


def _surface_table(found: dict[str, Any]) -> Table:
    forms = list(next(iter(found["surfaces"].values()))["held_out"])
    rows = [
        [ability, one["form"], *(_in_points(one["held_out"][form]) for form in forms), _in_points(one["noise"]),
         f"{one['widened']:.2f} times", p_text(np.nan if one["effect_p"] is None else one["effect_p"])]
        for ability, one in found["surfaces"].items()
    ]  # fmt: skip
    header = [
        "ability",
        "form",
        *(f"error of {'guessing' if form == 'mean' else form}" for form in forms),
        "noise of a run",
        "intervals wider",
        "p (permutation)",
    ]
    notes = [
        "Error, in points: each composition was left out and predicted from the others (root mean square); the form "
        "with the smallest is used. Guessing: the mean of all other runs, for every composition. A form that hardly "
        "beats it knows little.",
        "Noise of a run, in points: standard deviation between runs of one composition, all asked the same problems.",
        "Intervals wider: errors on left-out compositions were this many times what the form itself expected, so its "
        "intervals are made wider by as much.",
        "p: of a permutation test, corrected for the number of abilities (Holm). Small: composition has an effect.",
    ]
    return Table("search-surfaces", "The surfaces", header, rows, notes)


def _in_points(part: float) -> str:
    return f"{100 * part:.1f}" if part is not None and np.isfinite(part) else "-"


def _batch_table(found: dict[str, Any]) -> Table:
    rows = []
    for i, batch in enumerate(found["batches"], 1):
        gain = batch["numbers"].get("expected_gain")
        shown = "-" if gain is None or batch["kind"] != "improvement" else f"{100 * gain:.2f} pts"
        runs = sum(len(trial["seeds"]) for trial in batch["trials"])
        words = found["stopped"] if batch["kind"] == "verification" else batch["words"]
        rows.append([str(i), batch["kind"], str(runs), shown, words])
    header = ["", "decision", "runs", "expected gain", "why"]
    notes = [
        f"Expected gain: of the {_mean_title(found)} by the first of these runs, over the best so far, constraints "
        "kept."
    ]
    return Table("search-decisions", "How it went", header, rows, notes, folded=True)


def _run_table(found: dict[str, Any], evidence: Evidence) -> Table:
    tokens: dict[str, int] = {}
    for cost in evidence.costs:
        tokens[cost.config] = tokens.get(cost.config, 0) + sum(s.tokens for s in cost.stages if not s.reused)
    rows = [
        [t["name"], t["why"], str(t["batch"]), t["text"], ", ".join(map(str, t["seeds"])),
         *(number(t["scores"][name], 1) for name in found["abilities"]), number(t[WEIGHTED], 1),
         f"{tokens.get(t['name'], 0):,}"]
        for t in found["trials"]
    ]  # fmt: skip
    header = [
        "runs",
        "why",
        "decision",
        "composition",
        "seeds",
        *found["abilities"],
        _mean_title(found),
        "tokens trained",
    ]
    return Table(
        "search-runs", "Every run that it rests on", header, rows, ["Scores: means over the seeds."], folded=True
    )
