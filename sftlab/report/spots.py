"""Tooltips of a figure, shown when a point is hovered or tapped: a run's name, its seeds, n, the interval.

They are part of the SVG in a page and need no script: CSS shows the text of the spot under the pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftlab.report.evidence import Point
from sftlab.report.text import number, shortened, with_interval
from sftlab.screen import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RADIUS = 7.0  # in points: radius that reacts to the pointer
_LINE, _CHARACTER, _PAD = 10.0, 4.25, 5.0  # height of a line of text, width of a character, margin
_MOST_LINES, _MOST_CHARACTERS, _MOST_SEEDS = 9, 64, 5


@dataclass(frozen=True, eq=False)
class Spot:
    """A place in a figure with a tooltip.

    Attributes:
        axes: The axes whose coordinates are used.
        x: Horizontal position.
        y: Vertical position.
        lines: The text.
        size: Width and height of a cell whose lower left corner is (x, y); by default a dot around (x, y).
    """

    axes: Axes
    x: float
    y: float
    lines: Sequence[str]
    size: tuple[float, float] | None = None


def point_lines(title: str, point: Point, best: float | None) -> list[str]:
    """Return the tooltip of a mean: its interval, number of problems, every seed with its run."""
    lines = [title, f"{with_interval(point.value, point.low, point.high, best)}, 95 % interval"]
    seeds = f"{len(point.by_seed)} seed{'s' * (len(point.by_seed) != 1)}"
    lines.append(seeds if point.num_problems is None else f"{seeds}, n = {point.num_problems:,} problems each")
    named = list(point.by_seed.items())
    lines += [f"seed {seed}: {number(v, best)}  {point.runs.get(seed, '')}".strip() for seed, v in named[:_MOST_SEEDS]]
    return lines + ([f"and {len(named) - _MOST_SEEDS} more"] if len(named) > _MOST_SEEDS else [])


def overlay(figure: Figure, spots: Sequence[Spot]) -> str:
    """Return the spots as SVG elements for the end of the figure's SVG, whose unit is a point."""
    if not spots:
        return ""
    figure.draw_without_rendering()  # positions are known only after the layout
    width, height = (72 * inches for inches in figure.get_size_inches())

    def place(axes: Axes, x: float, y: float) -> tuple[float, float]:
        across, up = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
        return across * width, (1 - up) * height

    return "\n".join(
        _spot(spot, place(spot.axes, spot.x, spot.y), _corner(spot, place), width, height) for spot in spots
    )


def _corner(spot: Spot, place: object) -> tuple[float, float] | None:
    if spot.size is None:
        return None
    return place(spot.axes, spot.x + spot.size[0], spot.y + spot.size[1])  # type: ignore[operator, no-any-return]


def _spot(spot: Spot, at: tuple[float, float], corner: tuple[float, float] | None, width: float, height: float) -> str:
    from markupsafe import escape

    x, y = at
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>'
    if corner:
        left, top = min(x, corner[0]), min(y, corner[1])
        across, down = abs(corner[0] - x), abs(corner[1] - y)
        shape = f'<rect x="{left:.1f}" y="{top:.1f}" width="{across:.1f}" height="{down:.1f}"/>'
        x, y = left + across / 2, top + down / 2
    lines = [shortened(visible(line), _MOST_CHARACTERS) for line in spot.lines[:_MOST_LINES]]
    wide, tall = _CHARACTER * max(map(len, lines)) + 2 * _PAD, _LINE * len(lines) + 2 * _PAD
    left = max(1.0, min(x + _RADIUS + 3, width - wide - 1))
    above, below = y - tall - _RADIUS - 2, y + _RADIUS + 2
    top = (
        above if above >= 1 else below if below + tall <= height - 1 else max(1.0, min(y - tall / 2, height - tall - 1))
    )
    spans = "".join(
        f'<tspan x="{left + _PAD:.1f}" y="{top + _PAD + _LINE * (i + 0.75):.1f}">{escape(line)}</tspan>'
        for i, line in enumerate(lines)
    )
    box = f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="3"/>'
    return f'<g class="spot" tabindex="-1">{shape}<g class="tip">{box}<text>{spans}</text></g></g>'
