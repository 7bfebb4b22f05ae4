"""Heat maps over the layers of a model, for TensorBoard and the run's ``exhibits``; text without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.metrics import log_text
from sftlab.files import whole_file
from sftlab.report.exhibit import Exhibit, Picture
from sftlab.report.style import AMOUNTS, BACK, INK, SIGNED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_WORDS = 12  # up to this many columns, every cell of a panel shows its number


@dataclass(frozen=True, eq=False)
class Panel:
    """One map of several side by side.

    Attributes:
        title: What its values belong to.
        columns: Labels of the columns.
        values_RC: Values [rows, columns]; nan is left white.
    """

    title: str
    columns: Sequence[str]
    values_RC: np.ndarray


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Panels side by side with the same rows and the same colours.

    Attributes:
        name: Name of the files, and of the TensorBoard tag after ``exhibits``.
        title: One line.
        caption: What the map shows and how it was measured, for a report.
        rows: Labels of the rows, the first layer first.
        across: What the columns are.
        panels: At least one.
        signed: Colours run from red through white at 0 to blue; otherwise from white at 0.
        form: How a value is written.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[str]
    across: str
    panels: Sequence[Panel]
    signed: bool
    form: str

    def show(self, trainer: Trainer, step: int) -> None:
        """Draw into TensorBoard and write an exhibit into ``exhibits``; without matplotlib, write only the text."""
        if not trainer.is_global_zero:
            return
        if find_spec("matplotlib") is None:
            log_text(trainer, f"exhibits/{self.name}", self._text(), step)
            return
        folder = RunContext.of(trainer).folder / "exhibits"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Picture(folder / f"{self.name}.png", self.title, self.caption)
        with style():
            figure = self.figure()
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"exhibits/{self.name}", figure, step)
            with whole_file(picture.path) as partial:
                figure.savefig(partial, dpi=150, format="png")
        Exhibit(self.title, parts=[picture]).write(folder, self.name)

    def figure(self) -> Figure:
        """Draw the panels."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        across = [1.3 + 0.52 * min(len(panel.columns), _MOST_WORDS) for panel in self.panels]
        down = 1.1 + 0.3 * len(self.rows)
        stacked = max(across) > down  # more columns than rows: one panel above the other, so that they fit on a page
        size = (max(across), len(across) * down) if stacked else (sum(across), down)
        figure = Figure(figsize=(max(5.5, size[0] + 1.2), size[1] + 0.4), layout="constrained")
        shape = (len(across), 1) if stacked else (1, len(across))
        axes_P = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
        largest = max(float(np.nanmax(np.abs(panel.values_RC), initial=0.0)) for panel in self.panels) or 1.0
        for axes, panel in zip(axes_P, self.panels, strict=True):
            image = self._draw(axes, panel, largest)
        axes_P[0].set_yticks(range(len(self.rows)), self.rows)
        ticks = PercentFormatter(1) if "%" in self.form else None
        figure.colorbar(image, ax=list(axes_P), fraction=0.04, pad=0.015, format=ticks)
        figure.suptitle(self.title, fontsize=11, fontweight="bold")
        return figure

    def _draw(self, axes: Axes, panel: Panel, largest: float) -> Any:
        low, colours = (-largest, SIGNED) if self.signed else (0.0, AMOUNTS)
        image = axes.imshow(panel.values_RC, cmap=colours, vmin=low, vmax=largest, aspect="auto")
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.set_xlabel(self.across)
        some = range(0, len(panel.columns), 1 + (len(panel.columns) - 1) // _MOST_WORDS)
        axes.set_xticks(some, [panel.columns[i] for i in some], fontsize=8)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        if len(panel.columns) <= _MOST_WORDS:
            for (row, column), value in np.ndenumerate(panel.values_RC):
                if not np.isnan(value):
                    dark = abs(value) > 0.6 * largest
                    words = format(value, self.form)
                    axes.text(column, row, words, ha="center", va="center", fontsize=7.5, color=BACK if dark else INK)
        return image

    def _text(self) -> str:
        header = ["", *(f"{panel.title}, {column}" for panel in self.panels for column in panel.columns)]
        lines = [header, ["---"] * len(header)]
        for row, label in enumerate(self.rows):
            lines.append([label, *(format(v, self.form) for panel in self.panels for v in panel.values_RC[row])])
        return "\n\n".join([self.caption, "\n".join("| " + " | ".join(cells) + " |" for cells in lines)])
