"""How figures are drawn: one set of axes, intervals on everything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftlab.files import whole_file
from sftlab.report.evidence import Point, text_of
from sftlab.report.style import BACK, GRID, INK, LOOKS, MUTED, SCORES, Look, look, page_colours
from sftlab.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, Point]]  # x and the mean there, ascending in x


@dataclass(frozen=True)
class LinePanel:
    """One set of axes of ``line_figure``.

    Attributes:
        title: Above the axes.
        ylabel: What is measured.
        best: The highest possible score; None for a loss.
        lines: Points of each line, by its label.
        fitted: Curves without points, by the label of the line they belong to: x, y and a dash pattern.
        mark: An x with its interval, drawn as a vertical line and a band; 0 and infinity lie beyond the axis.
    """

    title: str
    ylabel: str
    best: float | None
    lines: Mapping[str, Line]
    fitted: Sequence[tuple[str, np.ndarray, np.ndarray, Any]] = ()
    mark: tuple[float, float, float] | None = None
    joined: bool = True


def line_figure(grid: Sequence[Sequence[LinePanel]], xlabel: str) -> Figure:
    """A grid of panels over a log-2 axis that they share; bands are 95 % intervals."""
    panels = [panel for row in grid for panel in row]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    xs = sorted({x for panel in panels for line in panel.lines.values() for x, _ in line})
    figure, axes_RC = _subplots(len(grid), max(len(row) for row in grid), 3.3, 2.75, 0.35 if len(labels) > 1 else 0)
    for r, row in enumerate(grid):
        for c, panel in enumerate(row):
            axes = axes_RC[r][c]
            for label in panel.lines:
                _draw_line(axes, panel, label, look(labels.index(label)), xs)
            axes.set_title(panel.title)
            axes.set_ylabel(panel.ylabel)
            _score_axis(axes, panel)
            _log_axis(axes, xs)
            if panel.mark:
                _draw_mark(axes, panel.mark, xs)
            if r == len(grid) - 1:
                axes.set_xlabel(xlabel)
    if len(labels) > 1:
        handles = {h.get_label(): h for axes in np.ravel(axes_RC) for h in axes.get_legend_handles_labels()[0]}
        _legend(figure, [handles[_named(label)] for label in labels if _named(label) in handles])
    return figure


def _named(label: str) -> str:
    """A label as a legend shows it: one that begins with ``_`` would be left out."""
    return shortened(f" {label}" if label.startswith("_") else label)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 6), handlelength=3.2)


def _subplots(rows: int, columns: int, width: float, height: float, extra: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.25, height * rows + extra), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _places(values: Sequence[float], xs: Sequence[float]) -> np.ndarray:
    """Where values stand on the log-2 axis; 0 stands left of the smallest positive one, beyond a break."""
    smallest = min((x for x in xs if x > 0), default=1.0)
    return np.array([math.log2(v) if v > 0 else math.log2(smallest) - 1.7 for v in values])


def _draw_line(axes: Axes, panel: LinePanel, label: str, how: Look, xs: Sequence[float]) -> None:
    line, colour = panel.lines[label], how.colour
    at_P = _places([x for x, _ in line], xs)
    mean_P, low_P, high_P = (np.array([getattr(p, name) for _, p in line]) for name in ("value", "low", "high"))
    start = 1 if line and line[0][0] == 0 else 0
    shared: dict[str, Any] = {"color": colour, "marker": how.marker, "markeredgecolor": BACK, "markeredgewidth": 0.6}
    if panel.joined:
        axes.plot(at_P[start:], mean_P[start:], linestyle=how.dashes, label=_named(label), zorder=3, **shared)
        axes.fill_between(at_P[start:], low_P[start:], high_P[start:], color=colour, alpha=0.16, linewidth=0)
        at_P, mean_P, low_P, high_P = (a[:start] for a in (at_P, mean_P, low_P, high_P))  # the point at 0 stands alone
    if len(at_P):
        ends = np.nan_to_num(np.maximum(0, np.stack([mean_P - low_P, high_P - mean_P])))
        name = None if panel.joined else _named(label)
        axes.errorbar(at_P, mean_P, ends, linestyle="none", capsize=2.5, elinewidth=1, label=name, zorder=3, **shared)
    for owner, x_F, y_F, dash in panel.fitted:
        if owner == label:
            axes.plot(_places(x_F.tolist(), xs), y_F, color=colour, linestyle=dash, linewidth=1.2, zorder=2)


def _log_axis(axes: Axes, xs: Sequence[float]) -> None:
    places = _places(xs, xs)
    axes.set_xticks(places, [text_of(x) for x in xs], rotation=35 if len(xs) > 6 else 0, fontsize=8.5)
    axes.set_xlim(places[0] - 0.45, places[-1] + 0.45)
    if xs and xs[0] == 0 and len(xs) > 1:
        middle = (places[0] + places[1]) / 2
        for shift in (-0.09, 0.09):
            axes.plot(
                [middle + shift - 0.08, middle + shift + 0.08],
                [-0.022, 0.022],
                transform=axes.get_xaxis_transform(),
                color=MUTED,
                linewidth=1,
                clip_on=False,
            )


def _score_axis(axes: Axes, panel: LinePanel) -> None:
    points = [p for line in panel.lines.values() for _, p in line]
    ends = [v for p in points for v in (p.value, p.low, p.high) if math.isfinite(v)]
    _limit(axes.set_ylim, ends, panel.best)
    if panel.best == 1:
        _percent(axes.yaxis)


def _limit(setter: Any, ends: Sequence[float], best: float | None) -> None:
    """Room for every interval, not beyond what a score can be by more than a marker needs."""
    if not ends:
        return
    low, high = min(ends), max(ends)
    room = max(0.06 * (high - low), 0.02 * (best or high or 1.0))
    floor, top = -0.03 * (best or high or 1.0), math.inf if best is None else 1.03 * best
    setter(max(floor, low - room), min(top, high + room))


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def _draw_mark(axes: Axes, mark: tuple[float, float, float], xs: Sequence[float]) -> None:
    value, low, high = mark
    left, right = axes.get_xlim()

    def place(x: float) -> float:
        return left if x == 0 else right if math.isinf(x) else float(np.clip(_places([x], xs)[0], left, right))

    if math.isfinite(low) or math.isinf(high):
        axes.axvspan(place(low), place(high), color=MUTED, alpha=0.13, linewidth=0, zorder=0)
    if math.isfinite(value) and value > 0:
        axes.axvline(place(value), color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)


def dot_figure(panels: Sequence[tuple[str, float | None, Sequence[Point | None]]], names: Sequence[str]) -> Figure:
    """Names down, one panel per score across, a dot with its interval each; the last row is the reference.

    Args:
        panels: Title, best score and the point of every name.
        names: Row labels, from the top.
    """
    figure, axes_1C = _subplots(1, len(panels), 2.9, 0.34 * len(names) + 0.9, 0)
    names = [shortened(name) for name in names]
    figure.set_figwidth(figure.get_figwidth() + 0.085 * max(map(len, names)))
    for c, (title, best, points) in enumerate(panels):
        axes = axes_1C[0][c]
        rows = [(len(names) - 1 - i, p) for i, p in enumerate(points) if p]
        for y, point in rows:
            how = look(len(names) - 1 - y)
            ends = [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]
            axes.errorbar(
                point.value, y, xerr=np.nan_to_num(ends), color=how.colour, marker=how.marker, capsize=3, elinewidth=1.4
            )
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), list(reversed(names)) if c == 0 else [])
        axes.tick_params(axis="y", length=0)
        axes.set_title(title)
        _limit(axes.set_xlim, [v for _, p in rows for v in (p.value, p.low, p.high) if math.isfinite(v)], best)
        if best == 1:
            _percent(axes.xaxis)
    return figure


@dataclass(frozen=True, eq=False)
class HeatBlock:
    """Rows of a heat map that belong together.

    Attributes:
        name: Left of the rows.
        rows: Their labels.
        share_RC: Colours, from 0 to 1; nan is left empty.
        text_RC: What stands in the cells.
    """

    name: str
    rows: list[str]
    share_RC: np.ndarray
    text_RC: list[list[str]] = field(default_factory=list)


def heat_figure(blocks: Sequence[HeatBlock], columns: Sequence[str]) -> Figure:
    """Blocks under each other, columns across, cells coloured and written in."""
    import matplotlib
    from matplotlib.patches import Rectangle

    colours = matplotlib.colormaps[SCORES]
    gaps = [0.35 if len(b.rows) > 1 else 0.08 for b in blocks]
    height = sum(len(b.rows) + gap for b, gap in zip(blocks, gaps, strict=True))
    named = [row for b in blocks if len(b.rows) > 1 for row in b.rows]  # the one stage of a block needs no name
    wide = [max(len(b.name) for b in blocks), max(map(len, named), default=0)]
    figure, axes_11 = _subplots(1, 1, 1.15 * len(columns) + 0.075 * sum(wide) + 0.6, 0.31 * height + 0.45, 0)
    axes, y = axes_11[0][0], 0.0
    for block, gap in zip(blocks, gaps, strict=True):
        place = (-0.25 - 0.072 * wide[1], y + len(block.rows) / 2)
        axes.text(*place, block.name, ha="right", va="center", weight="bold")
        for i, row in enumerate(block.rows):
            if len(block.rows) > 1:
                axes.text(-0.1, y + 0.5, row, ha="right", va="center")
            for j in range(len(columns)):
                share = float(block.share_RC[i, j])
                face = colours(share) if math.isfinite(share) else "none"
                axes.add_patch(Rectangle((j, y), 1, 1, facecolor=face, edgecolor=GRID, linewidth=0.8))
                ink = INK if not math.isfinite(share) else "#111111" if share > 0.55 else "#fefefe"
                axes.text(j + 0.5, y + 0.5, block.text_RC[i][j], ha="center", va="center", color=ink)
            y += 1
        y += gap
    for j, column in enumerate(columns):
        axes.text(j + 0.5, -0.15, column, ha="center", va="bottom", weight="bold")
    axes.set_xlim(0, len(columns))
    axes.set_ylim(y - 0.3, 0)
    axes.set_axis_off()
    return figure


def front_figure(
    points: Sequence[tuple[str, Point, Point, bool]], xlabel: str, ylabel: str, best_label: str | None
) -> Figure:
    """One measure against another with crosses of intervals; the Pareto front is joined, the choice is ringed."""
    figure, axes_11 = _subplots(1, 1, 5.4, 3.9, 0)
    axes, behind, ahead = axes_11[0][0], LOOKS[6], LOOKS[0]
    front = sorted((p for p in points if p[3]), key=lambda p: p[1].value)
    axes.plot([p[1].value for p in front], [p[2].value for p in front], color=ahead.colour, zorder=2)
    for label, x, y, on_front in points:
        bars = [np.nan_to_num([[max(0.0, p.value - p.low)], [max(0.0, p.high - p.value)]]) for p in (x, y)]
        how = ahead if on_front else behind
        axes.errorbar(
            x.value, y.value, bars[1], bars[0], color=how.colour, marker=how.marker, elinewidth=0.7, alpha=0.9, zorder=3
        )
        shift, side = ((5, 5), "left") if on_front else ((-5, -11), "right")  # away from the line
        axes.annotate(label, (x.value, y.value), shift, textcoords="offset points", fontsize=8.5, ha=side, zorder=5)
        if label == best_label:
            axes.plot(x.value, y.value, "o", markersize=14, fillstyle="none", color=LOOKS[1].colour, zorder=4)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for number, setter, axis in ((1, axes.set_xlim, axes.xaxis), (2, axes.set_ylim, axes.yaxis)):
        mine = [p[1] if number == 1 else p[2] for p in points]
        _limit(setter, [v for p in mine for v in (p.value, p.low, p.high) if math.isfinite(v)], 1.0)
        _percent(axis)
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write <name>.png and <name>.svg; return the SVG for a page: no addresses in it, and the page's own colours."""
    for ending in ("png", "svg"):
        metadata = {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
        with whole_file(folder / f"{name}.{ending}") as partial:
            figure.savefig(partial, format=ending, dpi=160, facecolor=BACK, metadata=metadata)
    return for_page((folder / f"{name}.svg").read_text(encoding="utf-8"), name)


def for_page(svg: str, name: str) -> str:
    """An SVG to stand inside a page: ids of its own, colours that follow the page's, no name spaces or metadata.

    Only tags are changed: what stands between them is text from data.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag[0], name), svg)


def _tag_for_page(tag: str, name: str) -> str:
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag).replace("xlink:href", "href")
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", tag)
    tag = tag.replace(f"fill: {BACK}", "fill: none")  # the grounds of figure and axes
    for colour, variable in page_colours().items():
        tag = tag.replace(colour, variable)
    return tag
