"""Figures of a choice: one measure against another, or against the training budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sftlab.report.evidence import Point
from sftlab.report.figures import Drawn, limit, percent, subplots
from sftlab.report.spots import Spot, point_lines
from sftlab.report.style import LOOKS
from sftlab.report.text import apart, short_count, shortened, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def front_figure(
    points: Sequence[tuple[str, Point, Point, bool]], what: str, xlabel: str, ylabel: str, best_label: str | None
) -> Drawn:
    """Plot one measure against another with error bars; join the Pareto front and ring the choice.

    Args:
        points: Label, both measures, and whether it is on the front.
        what: What the labels name.
        xlabel: The first measure.
        ylabel: The second.
        best_label: Label of the choice.
    """
    figure, axes_11 = subplots(1, 1, 5.4, 3.9, 0)
    axes, behind, ahead = axes_11[0][0], LOOKS[6], LOOKS[0]
    front = sorted((p for p in points if p[3]), key=lambda p: p[1].value)
    axes.plot([p[1].value for p in front], [p[2].value for p in front], color=ahead.colour, zorder=2)
    spots, labels = [], []
    for (label, x, y, on_front), text in zip(points, apart([p[0] for p in points], 24), strict=True):
        bars = [np.nan_to_num([[max(0.0, p.value - p.low)], [max(0.0, p.high - p.value)]]) for p in (x, y)]
        how = ahead if on_front else behind
        axes.errorbar(
            x.value, y.value, bars[1], bars[0], color=how.colour, marker=how.marker, elinewidth=0.7, alpha=0.9, zorder=3
        )
        told = [f"{name}: {with_interval(p.value, p.low, p.high, 1)}" for name, p in ((xlabel, x), (ylabel, y))]
        spots.append(Spot(axes, x.value, y.value, [f"{what} {label}", *told, *point_lines("", y, 1)[2:3]]))
        shift, side = ((5, 5), "left") if on_front else ((-5, -11), "right")  # away from the line
        rank = (label != best_label, not on_front, -y.value)
        labels.append((rank, text, (x.value, y.value), shift, side))
        if label == best_label:
            axes.plot(x.value, y.value, "o", markersize=14, fillstyle="none", color=LOOKS[1].colour, zorder=4)
    axes.set_xlabel(shortened(xlabel, 60))
    axes.set_ylabel(shortened(ylabel))
    for number, setter, axis in ((1, axes.set_xlim, axes.xaxis), (2, axes.set_ylim, axes.yaxis)):
        mine = [p[1] if number == 1 else p[2] for p in points]
        limit(setter, [v for p in mine for v in (p.value, p.low, p.high) if math.isfinite(v)], 1.0)
        percent(axis)
    _name_points(axes, labels)
    return figure, spots


def budget_figure(points: Sequence[tuple[str, int, Point, bool]], best_label: str) -> Drawn:
    """Plot a measure against the training budget; join the best at each budget by a staircase and ring the choice.

    Args:
        points: Label, tokens, measure, and whether no setting with as many tokens or fewer is better.
        best_label: Label of the choice.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes_11 = subplots(1, 1, 6.4, 3.7, 0)
    axes, behind, ahead, spots, labels = axes_11[0][0], LOOKS[6], LOOKS[0], [], []
    steps = sorted((p for p in points if p[3]), key=lambda p: p[1])
    axes.step([p[1] for p in steps], [p[2].value for p in steps], where="post", color=ahead.colour, zorder=2)
    for (label, tokens, y, is_best), text in zip(points, apart([p[0] for p in points], 28), strict=True):
        bars = np.nan_to_num([[max(0.0, y.value - y.low)], [max(0.0, y.high - y.value)]])
        how = ahead if is_best else behind
        axes.errorbar(tokens, y.value, bars, color=how.colour, marker=how.marker, elinewidth=0.7, alpha=0.9, zorder=3)
        spots.append(Spot(axes, tokens, y.value, [*point_lines(label, y, 1)[:3], f"{tokens:,} tokens trained"]))
        if is_best:
            rank = (label != best_label, False, -y.value)
            labels.append((rank, text, (tokens, y.value), (5, 6), "left"))
        if label == best_label:
            axes.plot(tokens, y.value, "o", markersize=14, fillstyle="none", color=LOOKS[1].colour, zorder=4)
    axes.set_xlabel("tokens trained, all stages")
    axes.set_ylabel("weighted mean of the scores")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.22 * (high - low))
    limit(axes.set_ylim, [v for p in points for v in (p[2].value, p[2].low, p[2].high) if math.isfinite(v)], 1.0)
    percent(axes.yaxis)
    _name_points(axes, labels)
    return figure, spots


_Label = tuple[tuple[bool, bool, float], str, tuple[float, float], tuple[int, int], str]
_FONT_SIZE = 8.5


def _name_points(axes: Axes, labels: Sequence[_Label]) -> None:
    """Write names beside points, the most important first; names that would overlap another are left out.

    Args:
        axes: The axes, with their final limits.
        labels: Rank, text, place in data, shift in points, and which side of the text the place is on.
    """
    per_point = axes.figure.dpi / 72
    edge = axes.transAxes.transform((0, 0))[0] / per_point
    taken: list[tuple[float, float, float, float]] = []
    for _, text, place, shift, side in sorted(labels):
        x, y = axes.transData.transform(place) / per_point
        width, height = 0.56 * _FONT_SIZE * len(text), 1.15 * _FONT_SIZE
        if side == "right" and x + shift[0] - width < edge:  # it would cover the axis
            side, shift = "left", (-shift[0], shift[1])
        left = x + shift[0] - (0 if side == "left" else width)
        box = (left, y + shift[1], left + width, y + shift[1] + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        axes.annotate(text, place, shift, textcoords="offset points", fontsize=_FONT_SIZE, ha=side, zorder=5)
