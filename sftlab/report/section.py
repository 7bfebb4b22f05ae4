"""What a report is made of: figures, which a study file names, turn evidence into sections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sftlab.report.evidence import Evidence, Point
from sftlab.report.exhibit import Cell, Picture, Table
from sftlab.report.rows import Panel
from sftlab.report.text import with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from sftlab.report.spots import Spot


@dataclass(frozen=True, eq=False)
class Drawing:
    """A matplotlib figure with its caption.

    Attributes:
        name: Name of its files.
        numbers: The drawn numbers, for its CSV.
        spots: Its tooltips.
    """

    name: str
    title: str
    caption: str
    figure: MatplotlibFigure
    numbers: list[dict[str, Cell]]
    spots: Sequence[Spot] = ()


@dataclass
class Section:
    """One question with its answer.

    Attributes:
        name: Start of the names of its files.
        findings: Sentences for the top of the report; ``**bold**`` is their one mark.
        parts: In the order shown.
        lead: Under the title.
        warnings: What a reader must know before comparing, at the top of the report too.
        missing: What should be here and is not.
        page: A page with more, which the report links to.
    """

    name: str
    title: str
    findings: list[str] = field(default_factory=list)
    parts: list[Drawing | Table | Picture] = field(default_factory=list)
    lead: str = ""
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    page: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.findings or self.parts or self.warnings or self.missing or self.page)


class Figure(ABC):
    """Something that a study file names under ``figures``: it makes a section of the study's report.

    A study file gives its arguments, as everywhere: ``{class_path: my_figures.Ladder, init_args: {single: alone}}``.

        class Ladder(Figure):
            config_arguments = ("single",)

            def __init__(self, single: str = "alone") -> None:
                self.single = single

            def section(self, evidence: Evidence) -> Section: ...

    Attributes:
        config_arguments: Arguments that name configs of the study (keys of its ``runs``); a name that it does not have
            is told when the study is read. ``{ability}`` in a name stands for any text.
        factor_arguments: Arguments that name factors of the study (keys of its ``grid``), likewise.
    """

    config_arguments: ClassVar[tuple[str, ...]] = ()
    factor_arguments: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def section(self, evidence: Evidence) -> Section:
        """Build the section. What cannot be shown goes into ``missing``; only bad input raises a ValueError."""


def point_text(point: Point | None, best: float | None) -> str:
    """Format a mean and its interval; a dash if there is none."""
    return with_interval(point.value, point.low, point.high, best) if point else "-"


def point_numbers(point: Point) -> dict[str, Cell]:
    """Return the columns of a point for a CSV."""
    return {
        "mean": point.value,
        "low": point.low,
        "high": point.high,
        "standard_error": point.error,
        "num_seeds": len(point.by_seed),
    }


def panel_title(panel: Panel) -> str:
    """Return the ability, with its task if that adds information."""
    return panel.ability if panel.task.startswith("lab_") or panel.best is None else f"{panel.ability}: {panel.task}"


def panel_label(panel: Panel) -> str:
    """Return what the panel's axis measures."""
    return "loss on held-out data" if panel.best is None else panel.metric.split("/")[0].replace("@", " at ")


def interval_words(points: Sequence[Point]) -> str:
    """Explain the intervals of a figure."""
    counts = sorted({len(p.by_seed) for p in points})
    over = "Student's t over seeds, but never narrower than the number of problems allows"
    single = "that of the run over its problems (Wilson's for rates), without the variation of training"
    if not counts:
        return ""
    if counts[0] >= 2:
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"Means over {number} seeds; 95 % interval: {over}."
    if counts == [1]:
        return f"One seed; 95 % interval: {single}."
    return f"Means over seeds; 95 % interval: {over}; of a single seed {single}."
