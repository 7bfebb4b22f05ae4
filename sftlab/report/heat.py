"""Heat maps of a report: scores after each stage, with coloured and labelled cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sftlab.report.figures import Drawn, percent, subplots
from sftlab.report.spots import Spot
from sftlab.report.style import GRID, INK, SCORES
from sftlab.report.text import apart, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class HeatBlock:
    """Rows of a heat map that belong together.

    Attributes:
        name: Label left of the rows.
        rows: Labels of the rows.
        share_RC: Colours, from 0 to 1; nan is left empty.
        text_RC: Text in the cells.
        lines_RC: Tooltips of the cells.
    """

    name: str
    rows: list[str]
    share_RC: np.ndarray
    text_RC: list[list[str]] = field(default_factory=list)
    lines_RC: list[list[list[str]]] = field(default_factory=list)


def heat_figure(blocks: Sequence[HeatBlock], columns: Sequence[str]) -> Drawn:
    """Draw blocks one below the other, columns across, with coloured and labelled cells."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    colours = matplotlib.colormaps[SCORES]
    gaps = [0.35 if len(b.rows) > 1 else 0.08 for b in blocks]
    height = sum(len(b.rows) + gap for b, gap in zip(blocks, gaps, strict=True))
    names = apart([b.name for b in blocks], _LONGEST_NAME)
    rows = [apart(b.rows) if len(b.rows) > 1 else [""] for b in blocks]  # a block's only stage needs no name
    wide = [max(map(len, names)), max(len(row) for shown in rows for row in shown)]
    inches = [_INCHES_PER_LETTER * letters for letters in wide]
    figure, axes_11 = subplots(1, 1, 1.15 * len(columns) + sum(inches) + 1.1, 0.31 * height + 0.45, 0)
    axes, y, spots = axes_11[0][0], 0.0, []
    for block, gap, name, shown in zip(blocks, gaps, names, rows, strict=True):
        _beside(axes, y + len(block.rows) / 2, name, 0.2 + inches[1], "bold")
        for i, row in enumerate(shown):
            _beside(axes, y + 0.5, row, 0.1, "normal")
            for j in range(len(columns)):
                share = float(block.share_RC[i, j])
                face = colours(share) if math.isfinite(share) else "none"
                axes.add_patch(Rectangle((j, y), 1, 1, facecolor=face, edgecolor=GRID, linewidth=0.8))
                ink = INK if not math.isfinite(share) else "#111111" if share > 0.55 else "#fefefe"
                if block.lines_RC and block.lines_RC[i][j]:
                    spots.append(Spot(axes, j, y, block.lines_RC[i][j], size=(1, 1)))
                axes.text(j + 0.5, y + 0.5, block.text_RC[i][j], ha="center", va="center", color=ink)
            y += 1
        y += gap
    for j, column in enumerate(columns):
        axes.text(j + 0.5, -0.15, shortened(column, 16), ha="center", va="bottom", weight="bold")
    axes.set_xlim(0, len(columns))
    axes.set_ylim(y - gaps[-1], 0)
    axes.set_axis_off()
    steps = ScalarMappable(cmap=colours.resampled(40))  # from 51 on it would be a picture inside the SVG
    bar = figure.colorbar(steps, ax=axes, shrink=min(1.0, 6 / height), pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    percent(bar.ax.yaxis)
    return figure, spots


_LONGEST_NAME = 72  # a composition of three abilities
_INCHES_PER_LETTER = 0.098  # of the bold names


def _beside(axes: Axes, y: float, text: str, inches: float, weight: str) -> None:
    """Write left of the cells, this many inches from them whatever their final size."""
    shift = (-72 * inches, 0)
    axes.annotate(text, (0, y), shift, textcoords="offset points", ha="right", va="center", weight=weight)
