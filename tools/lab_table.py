"""The tables of ``tools/lab_phenomena``: means over seeds with Student's intervals, and predictions beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sftlab.lab.options import LabOptions
from sftlab.lab.predict import predicted_styles
from sftlab.stats.interval import student

Lines = Mapping[tuple[str, int], Mapping[str, Any]]
ABILITIES = ("math", "code", "general")
ACCURACY = "accuracy/exact@2"
SKILLS = {"math-like talk": "general style/arithmetic", "code-like talk": "general style/python"}


def table(lines: Lines) -> str:
    """All tables of which there are runs, in Markdown."""
    seeds = sorted({seed for _, seed in lines})
    parts = [
        growth(lines, seeds),
        replay(lines, seeds),
        forgetting(lines, seeds),
        dial(lines, seeds),
        sizes(lines, seeds),
    ]
    return "\n\n".join(part for part in parts if part)


def _over_seeds(lines: Lines, seeds: Sequence[int], of: Callable[[Callable[[str, str], float]], float]) -> str:
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
    fewer = "" if len(values) == len(seeds) else f", {len(values)} seeds"
    return f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f}{fewer})"


def _markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if all(cell == "-" for row in rows for cell in row[1:]):
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"**{title}**", "", *lines])


def growth(lines: Lines, seeds: Sequence[int]) -> str:
    """Single and mixed by fraction, and how much of a gain is a matter of steps."""
    rows = []
    for f in ("1", "0.25", "0.0625", "0.015625"):
        for a in ABILITIES:
            metric = f"{a} {ACCURACY}"
            single, mixed, steps = f"{a} {f}", f"mixed {f}", f"{a} {f} steps"
            rows.append(
                [
                    f"{a}, {f}",
                    _over_seeds(lines, seeds, lambda s, r=single, m=metric: s(r, m)),
                    _over_seeds(lines, seeds, lambda s, r=mixed, m=metric: s(r, m)),
                    _over_seeds(lines, seeds, lambda s, r=mixed, o=single, m=metric: s(r, m) - s(o, m)),
                    _over_seeds(lines, seeds, lambda s, r=mixed, o=steps, m=metric: s(r, m) - s(o, m)),
                ]
            )
    header = ["ability, fraction", "alone", "mixed", "mixed - alone, equal epochs", "mixed - alone, equal steps"]
    return _markdown("Growth and conflict (accuracy in percent, 95 % interval over seeds)", header, rows)


def replay(lines: Lines, seeds: Sequence[int]) -> str:
    """The k sweep: scores, and styles measured and predicted."""
    sizes = {"math": 3072, "code": 1024, "general": 2048}
    rows = []
    for k in (0, 1 / 64, 1 / 16, 1 / 4, 1):
        run = f"k {k:g}"
        stage_2 = {"math": sizes["math"] * k, "code": sizes["code"] * k, "general": sizes["general"]}
        predicted = predicted_styles(LabOptions(), [{"math": sizes["math"], "code": sizes["code"]}, stage_2])
        row = [f"{k:g}", *(_over_seeds(lines, seeds, lambda s, r=run, m=f"{a} {ACCURACY}": s(r, m)) for a in ABILITIES)]
        for name, metric in (("math", "math style/style@1"), ("code", "code style/style@1"), *SKILLS.items()):
            measured = _over_seeds(lines, seeds, lambda s, r=run, m=metric: s(r, m)).split(" ")[0]
            row.append(f"{100 * predicted[name]:.0f} / {measured}")
        rows.append(row)
    rows = [row for row in rows if row[1] != "-"]
    header = ["k", *ABILITIES, *(f"{name}: style, predicted / measured" for name in ("math", "code", *SKILLS))]
    return _markdown("Replay: DMT by k (k = 0 is mixed sequential)", header, rows) if rows else ""


def forgetting(lines: Lines, seeds: Sequence[int]) -> str:
    """Strategies, and what is left after stage 2 by its learning rate."""
    names = {
        "stage 1": "math and code (stage 1)",
        "mixed 1": "multi-task",
        "sequential": "sequential: code, math, general",
        "k 0": "mixed sequential, stage 2 at the full learning rate",
        "k 0 rate 0.100": "the same, stage 2 at 1/10",
        "k 0 rate 0.033": "the same, stage 2 at 1/30",
    }
    rows = [
        [name, *(_over_seeds(lines, seeds, lambda s, r=run, m=f"{a} {ACCURACY}": s(r, m)) for a in ABILITIES)]
        for run, name in names.items()
    ]
    return _markdown("Strategies and forgetting", ["", *ABILITIES], rows)


def dial(lines: Lines, seeds: Sequence[int]) -> str:
    """Conflict in general by overlap."""
    sizes, rows = {"math": 3072, "code": 1024, "general": 2048}, []
    for overlap in (0.0, 0.3, 0.6, 0.9):
        end = "" if overlap == 0.6 else f" overlap {overlap}"
        mixed, alone = f"mixed 1{end}", f"general 1{end}"
        predicted = predicted_styles(LabOptions(overlap=overlap), [sizes])
        metric = f"general {ACCURACY}"
        row = [f"{overlap}", _over_seeds(lines, seeds, lambda s, r=mixed, o=alone, m=metric: s(r, m) - s(o, m))]
        for name, metric in (("code", "code style/style@1"), *SKILLS.items()):
            measured = _over_seeds(lines, seeds, lambda s, r=mixed, m=metric: s(r, m)).split(" ")[0]
            row.append(f"{100 * predicted[name]:.0f} / {measured}" if measured != "-" else "-")
        rows.append(row)
    header = ["overlap", "general: mixed - alone", *(f"{n}: style, predicted / measured" for n in ("code", *SKILLS))]
    return _markdown("The dial: conflict by overlap, everything mixed at full data", header, rows)


def sizes(lines: Lines, seeds: Sequence[int]) -> str:
    """Growth with size."""
    rows = []
    for f in ("1", "0.0625"):
        for a in ABILITIES:
            runs = (f"{a} {f} small", f"{a} {f}", f"{a} {f} large")
            rows.append(
                [f"{a}, {f}", *(_over_seeds(lines, seeds, lambda s, r=r, m=f"{a} {ACCURACY}": s(r, m)) for r in runs)]
            )
    if all(row[1] == row[3] == "-" for row in rows):
        return ""
    return _markdown("Growth with size (alone)", ["ability, fraction", "lab:small", "lab:base", "lab:large"], rows)
