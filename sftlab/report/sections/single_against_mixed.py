"""Each ability trained alone against all of them mixed, at the same amounts of data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sftlab.report.evidence import SPECIALISTS, Evidence, Factors, Series
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import Line, LinePanel, line_figure
from sftlab.report.lines import Lines, line_numbers, points_in, rest_text
from sftlab.report.paper_numbers import paper_table
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Figure, Section, interval_words, panel_label, panel_title
from sftlab.stats.interval import Estimate
from sftlab.stats.tradeoff import Crossover, crossover


class SingleAgainstMixed(Figure):
    """Each ability from its own data alone against all data mixed, and where mixing turns from gain to conflict.

    Args:
        single: Configs that train one ability alone, ``{ability}`` standing for its name. In a config without it, runs
            count in which a factor has the ability's name as its value.
        mixed: The config that mixes all abilities.
        axis: The factor that is the amount of data.
    """

    config_arguments = ("single", "mixed")
    factor_arguments = ("axis",)

    def __init__(self, single: str | Sequence[str] = SPECIALISTS, mixed: str = "mixed", axis: str = "fraction") -> None:
        self.single, self.mixed, self.axis = (single,) if isinstance(single, str) else tuple(single), mixed, axis

    def section(self, evidence: Evidence) -> Section:
        """Show a row of panels for each size, and the crossovers."""
        section = Section("single_against_mixed", "Single source against mixed")
        section.missing = evidence.missing(evidence.configs)
        if self.mixed not in evidence.configs:
            section.missing.append(f"config {self.mixed}")
        for panel in evidence.panels:
            if not evidence.specialists(panel.ability, self.single):
                section.missing.append(f"config {self.single[0].replace('{ability}', panel.ability)}")
        grid: list[list[LinePanel]] = []
        lines: dict[Panel, dict[str, Line]] = {}
        rows, numbers = [], []
        for rest in self._sizes(evidence):
            row = []
            for panel in evidence.panels:
                found = self._single_and_mixed(evidence, panel, rest)
                crossing = _crossing(panel, found)
                mark = crossing and (crossing.fraction.value, crossing.fraction.low, crossing.fraction.high)
                label = rest_text(evidence, rest)
                title = " ".join([panel_title(panel), label]).strip()
                row.append(LinePanel(title, panel_label(panel), panel.best, found, mark=mark or None))
                lines.setdefault(panel, {}).update({f"{k} {label}".strip(): v for k, v in found.items()})
                if crossing:
                    top = evidence.tick(self.axis, found["mixed"][-1][0])
                    section.findings.append(f"{title}: {self._crossing_words(crossing, top)}.")
                    rows.append([title, _fraction_words(crossing.fraction), f"{crossing.share_bracketed:.0%}"])
                    numbers.append(_crossing_numbers(panel, rest, crossing))
            grid.append(row)
        if any(panel.lines for row in grid for panel in row):
            section.parts.append(self._drawing(evidence, grid, lines))
        if rows:
            section.parts.append(_crossing_table(rows, numbers))
        section.parts.append(paper_table("single_against_mixed"))
        return section

    def _sizes(self, evidence: Evidence) -> list[Factors]:
        """Return the factors with which the mixture was run; if there is no mixture, those of all runs."""
        configs = [self.mixed] if self.mixed in evidence.configs else evidence.configs
        return list(dict.fromkeys(rest for config in configs for rest in evidence.rests(Series(config), self.axis)))

    def _drawing(self, evidence: Evidence, grid: list[list[LinePanel]], lines: dict[Panel, dict[str, Line]]) -> Drawing:
        caption = (
            "Each ability from its own data alone (single) and from all data mixed, at the same fraction of every "
            "source. Dashed: where mixing turns from gain to conflict, with its 95 % interval in grey. "
        )
        caption += interval_words(points_in(lines.values()))
        xlabel = "fraction of every source" if self.axis == "fraction" else self.axis
        figure, spots = line_figure(grid, xlabel, lambda x: evidence.tick(self.axis, x))
        name, title = "single-against-mixed", "Single source against mixed"
        return Drawing(name, title, caption, figure, line_numbers(self.axis, lines), spots)

    def _single_and_mixed(self, evidence: Evidence, panel: Panel, rest: Factors) -> dict[str, Line]:
        found: dict[str, Line] = {}
        for label, series in (
            ("single", evidence.specialists(panel.ability, self.single)),
            ("mixed", [Series(self.mixed)]),
        ):
            line = [pair for one in series for pair in self._line(evidence, panel, one, rest)]
            if line:
                found[label] = line
        return found

    def _line(self, evidence: Evidence, panel: Panel, series: Series, rest: Factors) -> Line:
        """Return the line of a config at the factors of ``rest`` that were varied for it."""
        varied = {name for group in evidence.groups if group.config == series.config for name, _ in group.factors}
        return evidence.line(panel, series, self.axis, tuple(pair for pair in rest if pair[0] in varied))

    def _crossing_words(self, crossing: Crossover, top: str) -> str:
        x, amount = crossing.fraction, "fraction" if self.axis == "fraction" else self.axis
        if x.low == 0 and math.isinf(x.high):
            return f"inside noise: these runs cannot tell at which {amount} mixing costs, or whether"
        if x.value == 0:
            start = f"mixing costs at every {amount} tried"
        elif math.isinf(x.value):
            start = f"mixing costs at no {amount} tried, up to {top}"
        else:
            start = f"mixing turns from gain to conflict at a {amount} of **{_near(x.value)}**"
        return start if math.isnan(x.low) else f"{start} (95 % interval: {_ends_words(x)})"


def _crossing(panel: Panel, found: Lines) -> Crossover | None:
    """Compute the crossover from the fractions that both were run at; None for fewer than two."""
    single, mixed = dict(found.get("single", ())), dict(found.get("mixed", ()))
    both = sorted(x for x in set(single) & set(mixed) if x > 0)
    if len(both) < 2:
        return None
    sign = 1 if panel.best is not None else -1
    gain_P = np.array([sign * (mixed[x].value - single[x].value) for x in both])
    error_P = np.array([math.hypot(mixed[x].error, single[x].error) for x in both])
    return crossover(np.array(both), gain_P, error_P)


def _fraction_words(x: Estimate) -> str:
    value = "below all tried" if x.value == 0 else "above all tried" if math.isinf(x.value) else _near(x.value)
    return value if math.isnan(x.low) else f"{value} ({_ends_words(x)})"


def _ends_words(x: Estimate) -> str:
    low = "below all tried" if x.low == 0 else "above all tried" if math.isinf(x.low) else _near(x.low)
    high = "below all tried" if x.high == 0 else "above all tried" if math.isinf(x.high) else _near(x.high)
    return low if low == high else f"{low} to {high}"


def _near(x: float) -> str:
    return f"1/{1 / x:.3g}" if x < 1 else f"{x:.3g}"


def _crossing_numbers(panel: Panel, rest: Factors, crossing: Crossover) -> dict[str, Cell]:
    x = crossing.fraction
    about: dict[str, Cell] = {"ability": panel.ability, "task": panel.task, **dict(rest)}
    return about | {"crossover": x.value, "low": x.low, "high": x.high, "share_bracketed": crossing.share_bracketed}


def _crossing_table(rows: list[list[str]], numbers: list[dict[str, Cell]]) -> Table:
    notes = [
        "Mixed minus single, replaced by the nearest sequence that never rises, crosses 0 on a straight line in log2 "
        "of the fraction; intervals by parametric bootstrap.",
        "Bracketed: part of the resamples that cross between the fractions tried.",
    ]
    header = ["", "turns at fraction", "bracketed"]
    return Table("crossover", "Where mixing turns from gain to conflict", header, rows, notes, numbers)
