"""How figures are drawn: shared axes, intervals on everything, and tooltips that tell what each point is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftlab.report.evidence import Point
from sftlab.report.spots import Spot, point_lines
from sftlab.report.style import BACK, INK, MUTED, Look, look
from sftlab.report.text import apart, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, Point]]  # x and the mean there, by ascending x
Tick = Callable[[float], str]  # formats a position on the axis
Drawn = tuple[Any, list[Spot]]  # a matplotlib figure and its tooltips


_MOST_IN_A_ROW = 6  # entries of a legend


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
        is_difference: Whether it shows a difference of two scores, with a line at 0.
    """

    title: str
    ylabel: str
    best: float | None
    lines: Mapping[str, Line]
    fitted: Sequence[tuple[str, np.ndarray, np.ndarray, Any]] = ()
    mark: tuple[float, float, float] | None = None
    joined: bool = True
    is_difference: bool = False


def line_figure(grid: Sequence[Sequence[LinePanel]], xlabel: str, tick: Tick) -> Drawn:
    """Draw a grid of panels over a shared log-2 axis; bands are 95 % intervals.

    Args:
        grid: Rows of panels.
        xlabel: Label of the axis.
        tick: Formats a position on the axis.
    """
    panels = [panel for row in grid for panel in row]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    named = {label: _shown(text) for label, text in zip(labels, apart(labels), strict=True)}
    xs = sorted({x for panel in panels for line in panel.lines.values() for x, _ in line})
    rows = -(-len(labels) // _MOST_IN_A_ROW) if len(labels) > 1 else 0
    figure, axes_RC = subplots(len(grid), max(len(row) for row in grid), 3.3, 2.75, 0.1 * bool(rows) + 0.25 * rows)
    spots = []
    for r, row in enumerate(grid):
        for axes in axes_RC[r][len(row) :]:
            axes.set_axis_off()
        for c, panel in enumerate(row):
            axes = axes_RC[r][c]
            for label, line in panel.lines.items():
                _draw_line(axes, panel, label, named[label], look(labels.index(label)), xs)
                for (x, point), place in zip(line, _places([x for x, _ in line], xs), strict=True):
                    title = f"{label}, {xlabel} {tick(x)}" if len(labels) > 1 else f"{xlabel} {tick(x)}"
                    spots.append(Spot(axes, place, point.value, point_lines(title, point, panel.best)))
            axes.set_title(shortened(panel.title))
            axes.set_ylabel(shortened(panel.ylabel))
            _score_axis(axes, panel)
            _number_axis(axes, xs, tick)
            if panel.mark:
                _draw_mark(axes, panel.mark, xs)
            if r == len(grid) - 1:
                axes.set_xlabel(shortened(xlabel))
    if len(labels) > 1:
        handles = {h.get_label(): h for axes in np.ravel(axes_RC) for h in axes.get_legend_handles_labels()[0]}
        _legend(figure, [handles[text] for text in named.values() if text in handles])
    return figure, spots


def _shown(label: str) -> str:
    """Return a label as a legend shows it; matplotlib would leave out one that begins with ``_``."""
    return f" {label}" if label.startswith("_") else label


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), _MOST_IN_A_ROW), handlelength=3.2)


def subplots(rows: int, columns: int, width: float, height: float, extra: float) -> tuple[Figure, Any]:
    """Create a figure and its axes [rows, columns], sizes in inches, with extra height for a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.25, height * rows + extra), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _places(values: Sequence[float], xs: Sequence[float]) -> np.ndarray:
    """Compute positions of values on the log-2 axis; 0 is placed left of the smallest positive one, beyond a break.

    Values below 0 have no logarithm: if there are any, the positions are the values themselves.
    """
    if xs and min(xs) < 0:
        return np.array(values, dtype=float)
    smallest = min((x for x in xs if x > 0), default=1.0)
    return np.array([math.log2(v) if v > 0 else math.log2(smallest) - 1.7 for v in values])


def _draw_line(axes: Axes, panel: LinePanel, label: str, name: str, how: Look, xs: Sequence[float]) -> None:
    line, colour = panel.lines[label], how.colour
    at_P = _places([x for x, _ in line], xs)
    mean_P, low_P, high_P = (np.array([getattr(p, name) for _, p in line]) for name in ("value", "low", "high"))
    start = 1 if line and line[0][0] == 0 else 0
    shared: dict[str, Any] = {"color": colour, "marker": how.marker, "markeredgecolor": BACK, "markeredgewidth": 0.6}
    is_joined = panel.joined and len(at_P) - start > 1
    if is_joined:
        axes.plot(at_P[start:], mean_P[start:], linestyle=how.dashes, label=name, zorder=3, **shared)
        axes.fill_between(at_P[start:], low_P[start:], high_P[start:], color=colour, alpha=0.16, linewidth=0)
        # The point at 0 is not joined to the line.
        at_P, mean_P, low_P, high_P = (a[:start] for a in (at_P, mean_P, low_P, high_P))
    if len(at_P):
        ends = np.nan_to_num(np.maximum(0, np.stack([mean_P - low_P, high_P - mean_P])))
        once = None if is_joined else name
        axes.errorbar(at_P, mean_P, ends, linestyle="none", capsize=2.5, elinewidth=1, label=once, zorder=3, **shared)
    for owner, x_F, y_F, dash in panel.fitted:
        if owner == label:
            axes.plot(_places(x_F.tolist(), xs), y_F, color=colour, linestyle=dash, linewidth=1.2, zorder=2)


def _number_axis(axes: Axes, xs: Sequence[float], tick: Tick) -> None:
    places = _places(xs, xs)
    if not xs:
        return
    every = -(-len(xs) // 14)  # more labels would overlap
    texts = apart([tick(x) for x in xs], 12)
    is_wide = max(map(len, texts)) * len(xs[::every]) > 36
    axes.set_xticks(places[::every], texts[::every], rotation=35 if is_wide else 0, fontsize=8.5)
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
    if panel.is_difference:
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    else:
        limit(axes.set_ylim, ends, panel.best)
    if panel.best == 1:
        percent(axes.yaxis)


def limit(setter: Any, ends: Sequence[float], best: float | None) -> None:
    """Set limits with room for every interval, at most a marker's width beyond the range of scores."""
    if not ends:
        return
    low, high = min(ends), max(ends)
    room = max(0.06 * (high - low), 0.02 * (best or high or 1.0))
    floor, top = -0.03 * (best or high or 1.0), math.inf if best is None else 1.03 * best
    setter(max(floor, low - room), min(top, high + room))


def percent(axis: Any, unit: str = "%") -> None:
    """Format an axis of shares in percent, or of their differences in points."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{unit}"))


def _draw_mark(axes: Axes, mark: tuple[float, float, float], xs: Sequence[float]) -> None:
    value, low, high = mark
    left, right = axes.get_xlim()

    def place(x: float) -> float:
        return left if x == 0 else right if math.isinf(x) else float(np.clip(_places([x], xs)[0], left, right))

    if math.isfinite(low) or math.isinf(high):
        axes.axvspan(place(low), place(high), color=MUTED, alpha=0.13, linewidth=0, zorder=0)
    if math.isfinite(value) and value > 0:
        axes.axvline(place(value), color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)


def dot_figure(panels: Sequence[tuple[str, float | None, Sequence[Point | None]]], names: Sequence[str]) -> Drawn:
    """Draw names down, one panel per score across, each a dot with its interval; the last row is the reference.

    Args:
        panels: Title, best score and the point of each name.
        names: Row labels, from the top.
    """
    texts = apart(names)
    figure, axes_1C = subplots(1, len(panels), 2.9, 0.34 * len(names) + 0.9, 0)
    figure.set_figwidth(figure.get_figwidth() + 0.085 * max(map(len, texts)))
    spots = []
    for c, (title, best, points) in enumerate(panels):
        axes = axes_1C[0][c]
        rows = [(len(names) - 1 - i, p) for i, p in enumerate(points) if p]
        for y, point in rows:
            how = look(len(names) - 1 - y)
            ends = [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]
            axes.errorbar(
                point.value, y, xerr=np.nan_to_num(ends), color=how.colour, marker=how.marker, capsize=3, elinewidth=1.4
            )
            told = f"{names[len(names) - 1 - y]}, {title}"
            spots.append(Spot(axes, point.value, y, point_lines(told, point, best)))
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), list(reversed(texts)) if c == 0 else [])
        axes.tick_params(axis="y", length=0)
        axes.set_title(shortened(title))
        limit(axes.set_xlim, [v for _, p in rows for v in (p.value, p.low, p.high) if math.isfinite(v)], best)
        if best == 1:
            percent(axes.xaxis)
    return figure, spots
