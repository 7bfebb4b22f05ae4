"""Sections on mixtures: single against mixed, the three ratio grids, equal count against equal proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sftlab.report.evidence import Evidence, Point, text_of
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import LinePanel, line_figure
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Section, interval_words, panel_label, panel_title, point_text
from sftlab.report.sections.growth import Line, Lines, Rest, line_numbers, points_in, rest_text
from sftlab.report.text import number
from sftlab.stats.interval import Estimate, is_beyond_noise
from sftlab.stats.tradeoff import Crossover, crossover

GRIDS = {
    "full_general": "all general data, k of the specialised",
    "full_specialised": "all specialised data, k of the general",
    "small_general": "1/64 of the general data, k of the specialised",
}


def single_against_mixed(evidence: Evidence) -> Section:
    """Each ability trained alone against all of them mixed, at the same fractions."""
    section = Section("single_against_mixed", "Single source against mixed")
    section.missing = evidence.missing(evidence.configs)
    if "mixed" not in evidence.configs:
        section.missing.append("config mixed")
    for panel in evidence.panels:
        if not evidence.specialists(panel.ability):
            section.missing.append(f"config single_{panel.ability}")
    configs = ["mixed"] if "mixed" in evidence.configs else evidence.configs
    sizes = list(dict.fromkeys(rest for config in configs for rest in evidence.without(config, "fraction")))
    grid: list[list[LinePanel]] = []
    lines: dict[Panel, Lines] = {}
    rows, numbers = [], []
    for rest in sizes:
        row = []
        for panel in evidence.panels:
            found = _single_and_mixed(evidence, panel, rest)
            crossing = _crossing(panel, found)
            mark = crossing and (crossing.fraction.value, crossing.fraction.low, crossing.fraction.high)
            title = " ".join([panel_title(panel), rest_text(rest)]).strip()
            row.append(LinePanel(title, panel_label(panel), panel.best, found, mark=mark or None))
            lines.setdefault(panel, {}).update({f"{k} {rest_text(rest)}".strip(): v for k, v in found.items()})
            if crossing:
                section.findings.append(f"{title}: {_crossing_words(crossing, found['mixed'])}.")
                rows.append([title, _fraction_words(crossing.fraction), f"{crossing.share_bracketed:.0%}"])
                numbers.append(_crossing_numbers(panel, rest, crossing))
        grid.append(row)
    if any(panel.lines for row in grid for panel in row):
        caption = (
            "Each ability from its own data alone (single) and from all data mixed, at the same fraction of every "
            "source. Dashed: where mixing turns from gain to conflict, with its 95 % interval in grey. "
        )
        caption += interval_words(evidence, points_in(lines.values()))
        figure = line_figure(grid, "fraction of every source")
        name, title = "single-against-mixed", "Single source against mixed"
        section.parts.append(Drawing(name, title, caption, figure, line_numbers("fraction", lines)))
    if rows:
        section.parts.append(_crossing_table(rows, numbers))
    return section


def _single_and_mixed(evidence: Evidence, panel: Panel, rest: Rest) -> Lines:
    found: Lines = {}
    for label, configs in (("single", evidence.specialists(panel.ability)), ("mixed", ["mixed"])):
        line = [pair for config in configs for pair in _line(evidence, panel, config, rest)]
        if line:
            found[label] = line
    return found


def _line(evidence: Evidence, panel: Panel, config: str, rest: Rest) -> Line:
    """The line of a config at the factors of ``rest`` that it was varied in."""
    varied = {name for group in evidence.groups if group.config == config for name, _ in group.factors}
    return evidence.line(panel, config, "fraction", tuple(pair for pair in rest if pair[0] in varied))


def _crossing(panel: Panel, found: Lines) -> Crossover | None:
    """From the fractions that both were run at; None for fewer than two."""
    single, mixed = dict(found.get("single", ())), dict(found.get("mixed", ()))
    both = sorted(x for x in set(single) & set(mixed) if x > 0)
    if len(both) < 2:
        return None
    sign = 1 if panel.best is not None else -1
    gain_P = np.array([sign * (mixed[x].value - single[x].value) for x in both])
    error_P = np.array([math.hypot(mixed[x].error, single[x].error) for x in both])
    return crossover(np.array(both), gain_P, error_P)


def _crossing_words(crossing: Crossover, mixed: Sequence[tuple[float, Point]]) -> str:
    x = crossing.fraction
    if x.low == 0 and math.isinf(x.high):
        return "inside noise: these runs cannot tell at which fraction mixing costs, or whether"
    if x.value == 0:
        start = "mixing costs at every fraction tried"
    elif math.isinf(x.value):
        start = f"mixing costs at no fraction tried, up to {text_of(mixed[-1][0])}"
    else:
        start = f"mixing turns from gain to conflict at a fraction of **{_near(x.value)}**"
    return start if math.isnan(x.low) else f"{start} (95 % interval: {_ends_words(x)})"


def _fraction_words(x: Estimate) -> str:
    value = "below all tried" if x.value == 0 else "above all tried" if math.isinf(x.value) else _near(x.value)
    return value if math.isnan(x.low) else f"{value} ({_ends_words(x)})"


def _ends_words(x: Estimate) -> str:
    low = "below all tried" if x.low == 0 else "above all tried" if math.isinf(x.low) else _near(x.low)
    high = "below all tried" if x.high == 0 else "above all tried" if math.isinf(x.high) else _near(x.high)
    return low if low == high else f"{low} to {high}"


def _near(x: float) -> str:
    return f"1/{1 / x:.3g}" if x < 1 else f"{x:.3g}"


def _crossing_numbers(panel: Panel, rest: Rest, crossing: Crossover) -> dict[str, Cell]:
    x = crossing.fraction
    about: dict[str, Cell] = {"ability": panel.ability, "task": panel.task, **dict(rest)}
    return about | {"crossover": x.value, "low": x.low, "high": x.high, "share_bracketed": crossing.share_bracketed}


def _crossing_table(rows: list[list[str]], numbers: list[dict[str, Cell]]) -> Table:
    notes = [
        "Mixed minus single, replaced by the nearest sequence that never rises, crosses 0 on a straight line in log2 "
        "of the fraction; intervals by parametric bootstrap.",
        "Bracketed: part of the resamples that cross between the fractions tried.",
    ]
    header = ["", "turns at fraction", "bracketed"]
    return Table("crossover", "Where mixing turns from gain to conflict", header, rows, notes, numbers)


def ratio(evidence: Evidence) -> Section:
    """Three grids over k: does the ratio matter, or the amount?"""
    section = Section("ratio", "Amount or ratio: three grids")
    section.missing = evidence.missing(GRIDS) + [f"config {name}" for name in GRIDS if name not in evidence.configs]
    axis = "k" if any("k" in dict(g.factors) for g in evidence.groups) else "fraction"
    _compare(evidence, section, list(GRIDS), axis, "k")
    section.lead = "; ".join(f"{name}: {text}" for name, text in GRIDS.items()) + "."
    for panel in evidence.panels:
        words = [text for config in GRIDS for text in _range_words(evidence, panel, config, axis)]
        if words:
            section.findings.append(f"{panel_title(panel)}, from the smallest to the largest k: {'; '.join(words)}.")
    return section


def _range_words(evidence: Evidence, panel: Panel, config: str, axis: str) -> list[str]:
    """How far the score moves over k, for each size."""
    found = []
    for rest in evidence.without(config, axis):
        line = evidence.line(panel, config, axis, rest)
        if len(line) < 2:
            continue
        (_, first), (_, last) = line[0], line[-1]
        change, error = last.value - first.value, math.hypot(first.error, last.error)
        verdict = "more than noise" if is_beyond_noise(change, error) else "inside noise"
        found.append(f"{rest_text(rest, config)} {number(change, panel.best, signed=True)} ({verdict})")
    return found


def equal_count(evidence: Evidence) -> Section:
    """As many examples of each source, against the same fraction of each."""
    section = Section("equal_count", "Equal count against equal proportion")
    configs = ["proportional", "equal_count"]
    section.missing = evidence.missing(configs) + [f"config {name}" for name in configs if name not in evidence.configs]
    _compare(evidence, section, configs, "fraction", "fraction")
    for panel in evidence.panels:
        for rest in evidence.without("proportional", "fraction"):
            pairs = [dict(evidence.line(panel, config, "fraction", rest)) for config in configs]
            both = sorted(set(pairs[0]) & set(pairs[1]))
            beyond = [x for x in both if _differ(pairs[0][x], pairs[1][x])]
            where = ", ".join(text_of(x) for x in beyond)
            words = f"differ by more than noise at {where}" if beyond else "differ by no more than noise"
            if both:
                title = " ".join([panel_title(panel), rest_text(rest)]).strip()
                section.findings.append(f"{title}: equal count and equal proportion {words} ({len(both)} fractions).")
    return section


def _differ(a: Point, b: Point) -> bool:
    return is_beyond_noise(a.value - b.value, math.hypot(a.error, b.error))


def _compare(evidence: Evidence, section: Section, configs: Sequence[str], axis: str, xlabel: str) -> None:
    """A panel per ability with a line per config (and size), and the table of it."""
    lines: dict[Panel, Lines] = {}
    for panel in evidence.panels:
        for config in configs:
            for rest in evidence.without(config, axis):
                line = evidence.line(panel, config, axis, rest)
                if line:
                    lines.setdefault(panel, {})[rest_text(rest, config)] = line
    if not lines:
        return
    grid = [[LinePanel(panel_title(p), panel_label(p), p.best, found) for p, found in lines.items()]]
    caption = interval_words(evidence, points_in(lines.values()))
    name = section.name.replace("_", "-")
    numbers = line_numbers(axis, lines)
    section.parts.append(Drawing(name, section.title, caption, line_figure(grid, xlabel), numbers))
    section.parts.append(line_table(f"{name}-table", section.title, xlabel, lines))


def line_table(name: str, title: str, axis: str, lines: dict[Panel, Lines]) -> Table:
    """Lines down and panels across, a row for each x."""
    labels = dict.fromkeys(label for found in lines.values() for label in found)
    rows = []
    for label in labels:
        points = {panel: dict(found.get(label, ())) for panel, found in lines.items()}
        for x in sorted({x for mine in points.values() for x in mine}):
            rows.append([label, text_of(x), *(point_text(mine.get(x), p.best) for p, mine in points.items())])
    header = ["", axis, *(panel_title(panel) for panel in lines)]
    return Table(name, title, header, rows, [], line_numbers(axis, lines), folded=True)
