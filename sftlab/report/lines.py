"""Lines of figures: scores of a config along a factor, one panel for each ability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sftlab.report.evidence import Evidence, Factors, Point, Series
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import Line, LinePanel, line_figure
from sftlab.report.rows import Panel
from sftlab.report.section import (
    Drawing,
    Section,
    interval_words,
    panel_label,
    panel_title,
    point_numbers,
    point_text,
)

Lines = Mapping[str, Line]  # by label


def rest_text(evidence: Evidence, rest: Factors, config: str = "") -> str:
    """Build a label from a config and the factors that are not the axis; the size is written without its name."""
    words = [
        evidence.text(name, value) if name == "size" else f"{name}={evidence.text(name, value)}" for name, value in rest
    ]
    return " ".join([*([config] if config else []), *words])


def lines_along(
    evidence: Evidence, panel: Panel, series: Sequence[Series], axis: str, named: bool = True
) -> dict[str, Line]:
    """Return the lines of one panel that have a point, by config and the other factors.

    Args:
        evidence: The study.
        panel: What is measured.
        series: The runs.
        axis: The factor on the x axis.
        named: Whether labels begin with the config.
    """
    found: dict[str, Line] = {}
    for one in series:
        for rest in evidence.rests(one, axis):
            if line := evidence.line(panel, one, axis, rest):
                found[rest_text(evidence, rest, one.config if named else "") or "score"] = line
    return found


def add_comparison(
    section: Section, evidence: Evidence, configs: Sequence[str], axis: str, xlabel: str
) -> dict[Panel, dict[str, Line]]:
    """Add a panel per ability with a line per config (and size), and its table."""
    series = [Series(config) for config in configs]
    lines = {panel: lines_along(evidence, panel, series, axis) for panel in evidence.panels}
    lines = {panel: found for panel, found in lines.items() if found}
    if lines:
        name = section.name.replace("_", "-")
        caption = interval_words(points_in(lines.values()))
        section.parts.append(lines_drawing(evidence, name, section.title, caption, lines, axis, xlabel))
        section.parts.append(line_table(evidence, f"{name}-table", section.title, axis, xlabel, lines))
    return lines


def lines_drawing(
    evidence: Evidence,
    name: str,
    title: str,
    caption: str,
    lines: Mapping[Panel, Lines],
    axis: str,
    xlabel: str,
) -> Drawing:
    """Draw a panel for each ability, side by side."""
    row = [LinePanel(panel_title(p), panel_label(p), p.best, found) for p, found in lines.items()]
    figure, spots = line_figure([row], xlabel, lambda x: evidence.tick(axis, x))
    return Drawing(name, title, caption, figure, line_numbers(axis, lines), spots)


def line_table(
    evidence: Evidence, name: str, title: str, axis: str, xlabel: str, lines: Mapping[Panel, Lines]
) -> Table:
    """Return a table with lines down and panels across, one row per x."""
    labels = dict.fromkeys(label for found in lines.values() for label in found)
    rows = []
    for label in labels:
        points = {panel: dict(found.get(label, ())) for panel, found in lines.items()}
        for x in sorted({x for mine in points.values() for x in mine}):
            rows.append(
                [label, evidence.tick(axis, x), *(point_text(mine.get(x), p.best) for p, mine in points.items())]
            )
    header = ["", xlabel, *(panel_title(panel) for panel in lines)]
    return Table(name, title, header, rows, [], line_numbers(axis, lines), folded=True)


def points_in(groups: Iterable[Lines]) -> list[Point]:
    """Return all points of some lines."""
    return [p for lines in groups for line in lines.values() for _, p in line]


def line_numbers(axis: str, lines: Mapping[Panel, Lines]) -> list[dict[str, Cell]]:
    """Return the points of a figure for its CSV."""
    return [
        {"ability": panel.ability, "task": panel.task, "line": label, axis: x, **point_numbers(point)}
        for panel, found in lines.items()
        for label, line in found.items()
        for x, point in line
    ]
