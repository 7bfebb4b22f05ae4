"""Figures of response surfaces: ternary plots, slices, the effect of each factor, the predicted Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sftlab.report.figures import Drawn, percent, subplots
from sftlab.report.spots import Spot
from sftlab.report.style import AMOUNTS, INK, LOOKS, MUTED, SCORES, look
from sftlab.report.text import apart, shortened, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = math.sqrt(3) / 2
MOST_PAIRS = 3


def ternary_figure(
    corners: Sequence[str],
    shares_P3: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray]],
    runs_R3: np.ndarray,
    checks_R: np.ndarray,
    best_3: np.ndarray,
    told: Sequence[str],
    breaks_P: np.ndarray,
) -> Drawn:
    """Draw predictions above, half the width of their intervals below; dots are runs, a ring is the proposal.

    Args:
        corners: The three abilities.
        shares_P3: The points of the surface.
        panels: Title, and mean, low and high end at each point [P, 3].
        runs_R3: Shares of the runs.
        checks_R: Which runs are those of the check: squares, since the surface does not know them.
        best_3: Shares of the proposal.
        told: Tooltip of each point; the scores are added.
        breaks_P: Which points likely break a constraint.
    """
    figure, axes_2C = subplots(2, len(panels), 2.75, 2.5, 0)
    spots = []
    x_P, y_P = _places(shares_P3)
    for column, (title, mean_P3) in enumerate(panels):
        half_P = (mean_P3[:, 2] - mean_P3[:, 1]) / 2
        for row, (value_P, colours) in enumerate(((mean_P3[:, 0], SCORES), (half_P, AMOUNTS))):
            axes = axes_2C[row][column]
            _triangle(axes, corners)
            drawn = axes.tripcolor(x_P, y_P, value_P, cmap=colours, shading="gouraud", zorder=1)
            if row == 0 and np.ptp(value_P) > 1e-6:
                axes.tricontour(x_P, y_P, value_P, 5, colors=INK, linewidths=0.5, alpha=0.6, zorder=2)
            bar = figure.colorbar(drawn, ax=axes, shrink=0.75, pad=0.02)
            bar.outline.set_visible(False)
            percent(bar.ax.yaxis)
            if row == 0:
                axes.set_title(shortened(title), y=1.08)
            axes.plot(*_places(runs_R3[~checks_R]), "o", color="white", markeredgecolor=INK, markersize=5, zorder=4)
            axes.plot(*_places(runs_R3[checks_R]), "s", fillstyle="none", color=INK, markersize=8, zorder=4)
            axes.plot(x_P[breaks_P], y_P[breaks_P], "x", color=INK, markersize=3, markeredgewidth=0.6, zorder=4)
            axes.plot(*_places(best_3[None]), "o", markersize=12, fillstyle="none", color=LOOKS[1].colour, zorder=5)
        for x, y, text, (mean, low, high) in zip(x_P, y_P, told, mean_P3.tolist(), strict=True):
            lines = [shortened(text, 60), f"{title}: {with_interval(mean, low, high, 1)}"]
            spots.append(Spot(axes_2C[0][column], float(x), float(y), lines))
    for row, label in enumerate(("predicted", "half the interval")):
        axes_2C[row][0].text(-0.17, 0.45, label, rotation=90, ha="center", va="center", color=MUTED)
    return figure, spots


def _places(shares_P3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place the corners: the first below left, the second below right, the third above."""
    return shares_P3[:, 1] + shares_P3[:, 2] / 2, shares_P3[:, 2] * _HEIGHT


def _triangle(axes: Axes, corners: Sequence[str]) -> None:
    axes.plot([0, 1, 0.5, 0], [0, 0, _HEIGHT, 0], color=MUTED, linewidth=0.8, zorder=3)
    for at in (0.25, 0.5, 0.75):
        for line in (
            ((at, 0, 1 - at), (at, 1 - at, 0)),
            ((0, at, 1 - at), (1 - at, at, 0)),
            ((0, 1 - at, at), (1 - at, 0, at)),
        ):
            axes.plot(*_places(np.array(line)), color=MUTED, linewidth=0.3, alpha=0.6, zorder=3)
    names = apart(corners, 16)
    for name, x, y, side, up in zip(names, (0, 1, 0.5), (-0.05, -0.05, _HEIGHT + 0.03), ("left", "right", "center"),
                                    ("top", "top", "bottom"), strict=True):  # fmt: skip
        axes.text(x, y, name, ha=side, va=up, fontsize=8.5)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.08, 1.08)
    axes.set_ylim(-0.14, _HEIGHT + 0.12)


def slice_figure(slices: Sequence[Mapping[str, Any]]) -> Drawn:
    """Draw one panel for each axis, with a line and band for each ability: means over all else."""
    axes_names = list(dict.fromkeys((one["axis"], one["is_share"]) for one in slices))
    names = list(dict.fromkeys(one["of"] for one in slices))
    columns = min(3, len(axes_names))
    rows = -(-len(axes_names) // columns)
    figure, axes_RC = subplots(rows, columns, 3.1, 2.5, 0.35)
    spots = []
    for number, (axis, is_share) in enumerate(axes_names):
        axes = axes_RC[number // columns][number % columns]
        for one in (s for s in slices if (s["axis"], s["is_share"]) == (axis, is_share)):
            how = look(names.index(one["of"]))
            place = list(range(len(one["places"]))) if not is_share else one["places"]
            axes.fill_between(place, one["low"], one["high"], color=how.colour, alpha=0.15, linewidth=0)
            axes.plot(place, one["mean"], color=how.colour, marker=how.marker, linestyle=how.dashes, label=one["of"])
            for x, y, low, high, text in zip(place, one["mean"], one["low"], one["high"], one["texts"], strict=True):
                spots.append(Spot(axes, x, y, [f"{axis} {text}", f"{one['of']}: {with_interval(y, low, high, 1)}"]))
            if not is_share:
                axes.set_xticks(place, apart(one["texts"], 8), rotation=45 * (len(place) > 6))
            else:
                percent(axes.xaxis)
        axes.set_title(shortened(f"share of {axis}" if is_share else axis))
        axes.set_ylabel("predicted score" if number % columns == 0 else "")
        percent(axes.yaxis)
    for number in range(len(axes_names), rows * columns):
        axes_RC[number // columns][number % columns].set_axis_off()
    handles, labels = axes_RC[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(6, len(labels)), handlelength=3.2)
    return figure, spots


def change_figure(slices: Sequence[Mapping[str, Any]]) -> Drawn:
    """Draw the largest effect of each axis with its interval, for each ability and their weighted mean."""
    axes_names = list(dict.fromkeys((one["axis"], one["is_share"]) for one in slices))
    names = list(dict.fromkeys(one["of"] for one in slices))
    figure, axes_11 = subplots(1, 1, 6.2, 0.32 * len(axes_names) * (1 + len(names) / 3) + 0.6, 0.3)
    axes, spots = axes_11[0][0], []
    for one in slices:
        number, row = names.index(one["of"]), axes_names.index((one["axis"], one["is_share"]))
        y = -row + 0.3 - 0.6 * number / max(1, len(names) - 1)
        how = look(number)
        bars = [[max(0.0, one["change"] - one["change_low"])], [max(0.0, one["change_high"] - one["change"])]]
        label = one["of"] if row == 0 else None
        axes.errorbar(
            one["change"],
            y,
            None,
            bars,
            color=how.colour,
            marker=how.marker,
            linestyle="none",
            elinewidth=1.1,
            label=label,
        )
        interval = with_interval(one["change"], one["change_low"], one["change_high"], 1, signed=True)
        spots.append(Spot(axes, one["change"], y, [f"{one['axis']}, {one['of']}", interval]))
    axes.axvline(0, color=MUTED, linewidth=0.8)
    shown = [f"share of {axis}" if is_share else axis for axis, is_share in axes_names]
    axes.set_yticks([-i for i in range(len(shown))], apart(shown))
    axes.set_ylim(-len(shown) + 0.5, 0.5)
    axes.set_xlabel("largest change along the factor, averaged over all else, in points")
    percent(axes.xaxis, unit="")
    figure.legend(loc="outside upper left", ncols=min(6, len(names)))
    return figure, spots


def prediction_figure(
    candidates: Sequence[Mapping[str, Any]], abilities: Sequence[str], anchors: Mapping[str, Mapping[str, float]]
) -> Drawn:
    """Draw predicted scores of all candidates, two abilities at a time, and highlight the Pareto front."""
    pairs = list(combinations(abilities, 2))[:MOST_PAIRS]
    figure, axes_1C = subplots(1, len(pairs), 3.4, 3.1, 0.3)
    spots = []
    for axes, (a, b) in zip(axes_1C[0], pairs, strict=True):
        for group, how, size, label in (
            ([c for c in candidates if c["on_front"] < 0.5], LOOKS[6], 2.5, "candidate"),
            (
                [c for c in candidates if c["on_front"] >= 0.5],
                LOOKS[0],
                4.5,
                "on the front in half of the draws or more",
            ),
        ):
            x, y = ([c["scores"][name][0] for c in group] for name in (a, b))
            axes.plot(
                x, y, linestyle="none", marker=how.marker, color=how.colour, markersize=size, alpha=0.8, label=label
            )
        for c in (c for c in candidates if c["on_front"] >= 0.5):
            ends = [(name, *c["scores"][name]) for name in abilities]
            told = [f"{name}: {with_interval(mean, low, high, 1)}" for name, mean, low, high in ends]
            spots.append(Spot(axes, c["scores"][a][0], c["scores"][b][0], [shortened(c["text"], 60), *told]))
        for scores, text in zip(anchors.values(), apart(list(anchors), 20), strict=True):
            axes.plot(scores[a], scores[b], linestyle="none", marker="s", color=LOOKS[1].colour, fillstyle="none",
                      label="anchor, measured")  # fmt: skip
            axes.annotate(text, (scores[a], scores[b]), (4, 4), textcoords="offset points", fontsize=7)
        for c in (c for c in candidates if c["best"]):
            axes.plot(c["scores"][a][0], c["scores"][b][0], "o", markersize=13, fillstyle="none", color=LOOKS[3].colour,
                      linestyle="none", label="proposal")  # fmt: skip
        axes.set_xlabel(shortened(a))
        axes.set_ylabel(shortened(b))
        percent(axes.xaxis)
        percent(axes.yaxis)
    handles, labels = axes_1C[0][0].get_legend_handles_labels()
    one_each = dict(zip(labels, handles, strict=True))
    figure.legend(one_each.values(), one_each.keys(), loc="outside upper left", ncols=4)
    return figure, spots
