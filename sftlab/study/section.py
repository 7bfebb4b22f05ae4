"""What a report is made of: sections with findings in words, drawings, tables, and what is missing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.study.evidence import Evidence, Panel, Point
from sftlab.study.scaling import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows with a header. Cells that are text are shown as they are, numbers are for the CSV alone.

    Attributes:
        name: Of its files.
        numbers: The same with all digits, for the CSV; the shown rows where left out.
        folded: Shown only when asked for.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    numbers: list[dict[str, Cell]] = field(default_factory=list)
    folded: bool = False

    def as_markdown(self) -> str:
        """A Markdown table with its title and notes."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + "".join(f"\n- {note}" for note in self.notes) + "\n" * bool(self.notes)

    def as_csv(self) -> str:
        """All digits where there are any."""
        return csv_of(self.numbers or [dict(zip(self.header, row, strict=True)) for row in self.rows])


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its caption and the numbers in it."""

    name: str
    title: str
    caption: str
    figure: Figure
    numbers: list[dict[str, Cell]]


@dataclass(frozen=True)
class Picture:
    """An image that something else made."""

    path: Path
    title: str
    caption: str


@dataclass
class Section:
    """One question with its answer.

    Attributes:
        name: Anchor, and start of the names of its files.
        findings: Sentences for the top of the report.
        parts: In the order shown.
        missing: What should be here and is not.
    """

    name: str
    title: str
    lead: str = ""
    findings: list[str] = field(default_factory=list)
    parts: list[Drawing | Table | Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV; nan is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def number(value: float, best: float | None, signed: bool = False) -> str:
    """A score as people read it: percent where 1 is the best, otherwise two decimals (losses three)."""
    if math.isnan(value):
        return "-"
    sign = "+" if signed else ""
    if best == 1:
        return f"{100 * value:{sign}.1f}" + (" pts" if signed else "%")
    return f"{value:{sign}.{3 if best is None else 2}f}"


def with_interval(value: float, low: float, high: float, best: float | None, signed: bool = False) -> str:
    """A score and its interval; the interval is left out where there is none."""
    if math.isnan(low) or math.isnan(value):
        return number(value, best, signed)
    scale, digits = (100, 1) if best == 1 else (1, 3 if best is None else 2)
    ends = [f"{scale * end:{'+' if signed else ''}.{digits}f}" for end in (low, high)]
    return f"{number(value, best, signed)} ({ends[0]} to {ends[1]})"


def point_text(point: Point | None, best: float | None) -> str:
    """A mean and its interval; a dash where there is none."""
    return with_interval(point.value, point.low, point.high, best) if point else "-"


def estimate_text(estimate: Estimate, digits: int = 2, scale: float = 1, signed: bool = False) -> str:
    """An estimate and its interval."""
    if math.isnan(estimate.value):
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    ends = "" if math.isnan(estimate.low) else f" ({scale * estimate.low:{form}} to {scale * estimate.high:{form}})"
    return f"{scale * estimate.value:{form}}{ends}"


def p_text(p: float) -> str:
    """A p value."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def point_numbers(point: Point) -> dict[str, Cell]:
    """Columns of a point for a CSV."""
    return {
        "mean": point.value,
        "low": point.low,
        "high": point.high,
        "standard_error": point.error,
        "num_seeds": len(point.by_seed),
    }


def panel_title(panel: Panel) -> str:
    """The ability, and its task where that says more."""
    return panel.ability if panel.task.startswith("lab_") or panel.best is None else f"{panel.ability}: {panel.task}"


def panel_label(panel: Panel) -> str:
    """What its axis measures."""
    return "loss on held-out data" if panel.best is None else panel.metric.split("/")[0].replace("@", " at ")


def interval_words(evidence: Evidence, points: Sequence[Point]) -> str:
    """Where the intervals of a figure come from."""
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
