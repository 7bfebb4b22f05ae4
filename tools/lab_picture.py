"""The chart of ``tools/lab_phenomena``: what is scored by replay fraction and by amount of data, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab_table import ABILITIES, ACCURACY

from sftlab.report.evidence import Point
from sftlab.report.figures import Line, LinePanel, line_figure
from sftlab.report.style import style
from sftlab.stats.interval import student

Lines = Mapping[tuple[str, int], Mapping[str, Any]]


def _line(lines: Lines, runs: Mapping[float, str], ability: str) -> Line:
    points = []
    for x, run in sorted(runs.items()):
        scores = {s: line["scores"] for (name, s), line in lines.items() if name == run}
        by_seed = {
            s: found[metric] / 100 for s, found in scores.items() if (metric := f"{ability} {ACCURACY}") in found
        }
        if by_seed:
            mean = student(list(by_seed.values()))
            points.append((x, Point(mean.value, mean.low, mean.high, mean.error, by_seed)))
    return points


def draw(lines: Lines, ks: Sequence[float], path: Path) -> None:
    """Two rows: scores by the fraction of the data, alone and mixed; scores after DMT by k."""
    fractions, rows = (1 / 64, 1 / 16, 1 / 4, 1.0), []
    for of, what in (("fraction of the data", "accuracy"), ("k", "accuracy after DMT")):
        panels = []
        for a in ABILITIES:
            names = {
                "alone, 3 epochs": {f: f"{a} {f:g}" for f in fractions},
                "alone, as many steps as mixed": {f: f"{a} {f:g} steps" for f in fractions},
                "mixed": {f: f"mixed {f:g}" for f in fractions},
            }
            names = names if of != "k" else {"DMT": {k: f"k {k:g}" for k in ks}}
            drawn = {label: line for label, runs in names.items() if (line := _line(lines, runs, a))}
            panels.append(LinePanel(f"{a}, by {of}", what, 1.0, drawn))
        rows.append(panels)
    with style():
        figure, _ = line_figure(rows, "fraction of the data; k", lambda x: f"1/{1 / x:.0f}" if 0 < x < 1 else f"{x:g}")
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
