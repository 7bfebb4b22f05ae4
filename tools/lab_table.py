"""The tables of ``tools/lab_phenomena``: means over seeds with Student's intervals, and predictions beside them.

A difference between two runs is computed seed by seed, and tested again over the problems of all seeds, which both runs
answered (McNemar): three seeds are few, but thousands of problems are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sftlab.lab.options import LabOptions
from sftlab.lab.predict import predicted_styles
from sftlab.stats.interval import student
from sftlab.stats.paired import compare_values

Lines = Mapping[tuple[str, int], Mapping[str, Any]]
Of = Callable[[Callable[[str, str], float]], float]
ABILITIES = ("math", "code", "general")
ACCURACY = "accuracy/exact@2"
SKILLS = {"math-like talk": "general style/arithmetic", "code-like talk": "general style/python"}
STYLES = {"math": "math style/style@1", "code": "code style/style@1", **SKILLS}
WEIGHTS = {"math 1, code 1, general 1": (1, 1, 1), "math 1, code 1, general 2": (1, 1, 2)}
"""Weights that a reader may use, chosen before there were any results."""


def table(lines: Lines, sizes: Mapping[str, int], ks: Sequence[float]) -> str:
    """Return all tables for which there are runs, in Markdown."""
    seeds = sorted({seed for _, seed in lines})
    parts = [
        growth(lines, seeds),
        strategies(lines, seeds),
        replay(lines, seeds, sizes, ks),
        compromise(lines, seeds, ks),
        dial(lines, seeds, sizes),
        by_size(lines, seeds),
        large(lines, seeds, ks),
    ]
    return "\n\n".join(part for part in parts if part)


def _over_seeds(lines: Lines, seeds: Sequence[int], of: Of, is_score: bool = False) -> str:
    """A number that each seed has, as its mean and 95 % interval over the seeds that have all of it."""
    values = []
    for seed in seeds:

        def score(run: str, metric: str, seed: int = seed) -> float:
            return lines[run, seed]["scores"][metric]

        try:
            values.append(of(score))
        except KeyError:
            continue
    if not values:
        return "-"
    mean = student(values)
    if len(values) < 2:
        return f"{mean.value:.1f} (one seed)"
    low, high = (max(mean.low, 0.0), min(mean.high, 100.0)) if is_score else (mean.low, mean.high)
    fewer = "" if len(values) == len(seeds) else f", {len(values)} seeds"
    return f"{mean.value:.1f} ({low:.1f} to {high:.1f}{fewer})"


def _score(lines: Lines, seeds: Sequence[int], run: str, metric: str) -> str:
    return _over_seeds(lines, seeds, lambda score: score(run, metric), is_score=True)


def _difference(lines: Lines, seeds: Sequence[int], run: str, base: str, ability: str) -> str:
    """``run - base``: over seeds, and McNemar's p over the problems of all seeds."""
    metric = f"{ability} {ACCURACY}"
    words = _over_seeds(lines, seeds, lambda score: score(run, metric) - score(base, metric))
    if words == "-":
        return words
    both = [s for s in seeds if (run, s) in lines and (base, s) in lines]
    rights = [
        {f"{s} {i}": [float(x)] for s in both for i, x in enumerate(lines[name, s]["right"][ability])}
        for name in (base, run)
    ]
    p = compare_values("", "", *rights).p_value
    return f"{words} {'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}"


def _markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    known = [row for row in rows if any(cell != "-" for cell in row[1:])]
    if not known:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *known)]
    return "\n".join([f"**{title}**", "", *lines])


def growth(lines: Lines, seeds: Sequence[int]) -> str:
    """Single and mixed by fraction, and how much of a gain is a matter of steps."""
    rows = []
    for f in ("1", "0.25", "0.0625", "0.015625"):
        for a in ABILITIES:
            scores = [_score(lines, seeds, run, f"{a} {ACCURACY}") for run in (f"{a} {f}", f"mixed {f}")]
            bases = (f"{a} {f}", f"{a} {f} steps")
            rows.append([f"{a}, {f}", *scores, *(_difference(lines, seeds, f"mixed {f}", base, a) for base in bases)])
    header = ["ability, fraction", "alone", "mixed", "mixed - alone, equal epochs", "mixed - alone, equal steps"]
    return _markdown("Growth and conflict (accuracy in percent, 95 % interval over seeds)", header, rows)


def replay(lines: Lines, seeds: Sequence[int], sizes: Mapping[str, int], ks: Sequence[float]) -> str:
    """The k sweep: scores, and styles measured and predicted."""
    rows = []
    for k in ks:
        run, replayed = f"k {k:g}", {a: n * k for a, n in sizes.items() if a != "general"}
        stages = [{a: sizes[a] for a in replayed}, {**replayed, "general": sizes["general"]}]
        predicted = predicted_styles(LabOptions(), stages)
        row = [f"{k:g}", *(_score(lines, seeds, run, f"{a} {ACCURACY}") for a in ABILITIES)]
        if row[1] == "-":
            continue
        for name, metric in STYLES.items():
            row.append(f"{100 * predicted[name]:.0f} / {_score(lines, seeds, run, metric).split(' ')[0]}")
        rows.append(row)
    smallest, one = f"k {min(k for k in ks if k):g}", "k 1"
    price = [_difference(lines, seeds, one, smallest, a) for a in ABILITIES]
    rows.append([f"{one} - {smallest}", *price, *("" for _ in STYLES if price[0] != "-")])
    header = ["k", *ABILITIES, *(f"{name}: style, predicted / measured" for name in STYLES)]
    return _markdown("Replay: DMT by k (k = 0 is mixed sequential)", header, rows)


def strategies(lines: Lines, seeds: Sequence[int]) -> str:
    """Strategies, and what is left after stage 2 by its learning rate."""
    names = {
        "stage 1": "math and code (stage 1)",
        "mixed 1": "multi-task",
        "sequential": "sequential: code, math, general",
        "k 0": "mixed sequential, stage 2 at the full learning rate",
        "k 0 rate 0.100": "the same, stage 2 at 1/10",
        "k 0 rate 0.033": "the same, stage 2 at 1/30",
        "k 0.00390625": "DMT, k = 1/256",
        "k 0.0625": "DMT, k = 1/16",
        "k 0.0625 rate 0.100": "the same, stage 2 at 1/10",
    }
    rows = [[name, *(_score(lines, seeds, run, f"{a} {ACCURACY}") for a in ABILITIES)] for run, name in names.items()]
    alone = [_score(lines, seeds, f"{a} 1", f"{a} {ACCURACY}") for a in ABILITIES]
    lost = [
        [f"{name} - alone", *(_difference(lines, seeds, run, f"{a} 1", a) for a in ABILITIES)]
        for run, name in (("mixed 1", "multi-task"), ("k 0", "mixed sequential"))
    ]
    multi = [_difference(lines, seeds, "mixed 1", "k 0", a) for a in ABILITIES]
    rows = [["each alone", *alone], *rows, *lost, ["multi-task - mixed sequential", *multi]]
    return _markdown("Strategies and forgetting", ["", *ABILITIES], rows)


def by_k(lines: Lines, ks: Sequence[float]) -> dict[str, dict[str, list[float]]]:
    """Of each k that all seeds have, and of each ability: mean, low and high end of its interval."""
    seeds = sorted({seed for _, seed in lines})
    scores: dict[str, dict[str, list[float]]] = {}
    for k in ks:
        if not all((f"k {k:g}", seed) in lines for seed in seeds):
            continue
        name = f"k = {k:g}" if k in (0, 1) else f"k = 1/{1 / k:.0f}"
        for a in ABILITIES:
            mean = student([lines[f"k {k:g}", seed]["scores"][f"{a} {ACCURACY}"] for seed in seeds])
            scores.setdefault(name, {})[a] = [round(x, 2) for x in (mean.value, mean.low, mean.high)]
    return scores


def compromise(lines: Lines, seeds: Sequence[int], ks: Sequence[float]) -> str:
    """The weighted mean score by k and for multi-task."""
    runs = {**{f"DMT, k = {k:g}": f"k {k:g}" for k in ks}, "multi-task": "mixed 1", "sequential": "sequential"}
    runs["DMT, k = 1/16, stage 2 at 1/10 of the rate"] = "k 0.0625 rate 0.100"
    rows = [
        [name, *(_over_seeds(lines, seeds, _mean_of(run, weights)) for weights in WEIGHTS.values())]
        for name, run in runs.items()
    ]
    return _markdown("Compromise: the weighted mean score", ["", *WEIGHTS], rows)


def large(lines: Lines, seeds: Sequence[int], ks: Sequence[float]) -> str:
    """The same on ``lab:large``: alone, mixed, DMT by k, and what a reader's weights make of it."""
    runs = {"multi-task": "mixed 1 large", "math and code (stage 1)": "stage 1 large"}
    runs |= {f"DMT, k = {k:g}": f"k {k:g} large" for k in ks}
    apart = {"": "1", ", 1/4 of the rate": "0.25", ", 1/8 of the rate, 9 epochs": "0.125"}
    runs |= {f"k = 0, stage 2 at overlap 0{words}": f"k 0 large apart rate {rate}" for words, rate in apart.items()}
    rows = [["each alone", *(_score(lines, seeds, f"{a} 1 large", f"{a} {ACCURACY}") for a in ABILITIES), "", ""]]
    for name, run in runs.items():
        scores = [_score(lines, seeds, run, f"{a} {ACCURACY}") for a in ABILITIES]
        rows.append([name, *scores, *(_over_seeds(lines, seeds, _mean_of(run, w)) for w in WEIGHTS.values())])
    conflict = [_difference(lines, seeds, "mixed 1 large", f"{a} 1 large", a) for a in ABILITIES]
    price = [_difference(lines, seeds, "k 1 large", f"k {min(k for k in ks if k):g} large", a) for a in ABILITIES]
    if rows[1][1] != "-":
        rows += [["multi-task - alone", *conflict, "", ""], ["k = 1 - smallest k", *price, "", ""]]
    return _markdown("A larger base", ["", *ABILITIES, *WEIGHTS], rows if rows[2][1] != "-" else [])


def _mean_of(run: str, weights: Sequence[int]) -> Of:
    return lambda score: (
        sum(w * score(run, f"{a} {ACCURACY}") for w, a in zip(weights, ABILITIES, strict=True)) / sum(weights)
    )


def dial(lines: Lines, seeds: Sequence[int], sizes: Mapping[str, int]) -> str:
    """What mixing changes by overlap, and what a perfect learner would lose by the style of its answers."""
    rows, usual = [], LabOptions().overlap
    for overlap in (0, 0.4, usual):
        end = "" if overlap == usual else f" overlap {overlap:g}"
        predicted = predicted_styles(LabOptions(overlap=overlap), [sizes])
        talk = overlap / 2 * sum(1 - predicted[name] for name in SKILLS)
        row = [f"{overlap:g}"]
        for a, loss in (("math", 1 - predicted["math"]), ("code", 1 - predicted["code"]), ("general", talk)):
            alone = f"{a} 1{end}" if a == "general" else f"{a} 1"  # the overlap is the general data's alone
            difference = _difference(lines, seeds, f"mixed 1{end}", alone, a)
            row += [f"{-100 * loss + 0.0:.0f}" if difference != "-" else "-", difference]
        rows.append(row)
    header = ["overlap", *(f"{a}: {what}" for a in ABILITIES for what in ("predicted by style", "mixed - alone"))]
    return _markdown("The dial: everything mixed at full data", header, rows)


def by_size(lines: Lines, seeds: Sequence[int]) -> str:
    """Growth with size."""
    rows = []
    for f in ("1", "0.0625"):
        for a in ABILITIES:
            small, base = f"{a} {f} small", f"{a} {f}"
            scores = [_score(lines, seeds, run, f"{a} {ACCURACY}") for run in (small, base)]
            rows.append([f"{a}, {f}", *scores, _difference(lines, seeds, base, small, a)])
    rows = [row for row in rows if row[1] != "-"]
    return _markdown("Growth with size (alone)", ["ability, fraction", "lab:small", "lab:base", "difference"], rows)
