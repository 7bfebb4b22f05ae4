"""The cost of mixing for each ability along a factor that controls conflict, beside predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sftlab.report.against import verdict_files
from sftlab.report.evidence import SPECIALISTS, Evidence, Factors, Group, Point, Series
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import LinePanel, line_figure
from sftlab.report.lines import line_numbers, rest_text
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Figure, Section, panel_title
from sftlab.report.text import number, p_text, with_interval
from sftlab.report.verdicts import compare_over_seeds
from sftlab.stats.interval import student

MEASURED, PREDICTED = "measured", "predicted"


class Conflict(Figure):
    """The score of all data mixed minus that of an ability's data alone, along a factor.

    Args:
        axis: The factor, by default the lab's dial. A specialist that was run without it is compared with the mixture
            at each of its values.
        single: Configs that train one ability alone, ``{ability}`` standing for its name.
        mixed: The config that mixes all abilities.
        predicted: The expected difference of an ability at values of the factor, in points:
            ``{math: {0: 0, 0.8: -6}}``.
    """

    config_arguments = ("single", "mixed")
    factor_arguments = ("axis",)

    def __init__(
        self,
        axis: str = "overlap",
        single: str | Sequence[str] = SPECIALISTS,
        mixed: str = "mixed",
        predicted: Mapping[str, Mapping[str | float, float]] | None = None,
    ) -> None:
        self.axis, self.mixed = axis, mixed
        self.single = (single,) if isinstance(single, str) else tuple(single)
        self.predicted = {
            ability: {float(x): float(points) / 100 for x, points in along.items()}
            for ability, along in (predicted or {}).items()
        }

    def section(self, evidence: Evidence) -> Section:
        """Show a panel for each ability, and whether the difference follows the factor."""
        section = Section("conflict", f"What mixing costs, by {self.axis}")
        section.missing = evidence.missing(evidence.configs)
        if self.mixed not in evidence.configs:
            section.missing.append(f"config {self.mixed}")
        elif not evidence.rests(Series(self.mixed), self.axis):
            section.missing.append(f"a run of {self.mixed} with a factor named {self.axis}")
        row, rows, numbers = [], [], {}
        for panel in evidence.panels:
            if not evidence.specialists(panel.ability, self.single):
                section.missing.append(f"config {self.single[0].replace('{ability}', panel.ability)}")
                continue
            lines: dict[str, list[tuple[float, Point]]] = {}
            for rest in evidence.rests(Series(self.mixed), self.axis):
                found = self._differences(evidence, panel, rest)
                label = " ".join([MEASURED, rest_text(evidence, rest)]).strip()
                lines[label] = [(x, point) for x, point, _ in found]
                for x, point, p in found:
                    expected = self.predicted.get(panel.ability, {}).get(x)
                    told = "-" if expected is None else number(expected, panel.best, signed=True)
                    shown = with_interval(point.value, point.low, point.high, panel.best, signed=True)
                    place = f"{evidence.tick(self.axis, x)} {rest_text(evidence, rest)}".strip()
                    rows.append([panel_title(panel), place, told, shown, p_text(p)])
                if words := _trend_words(evidence, panel, self.axis, lines[label]):
                    section.findings.append(f"{panel_title(panel)} {rest_text(evidence, rest)}".strip() + f": {words}.")
            if expected_by := self.predicted.get(panel.ability):
                lines[PREDICTED] = [(x, Point(y, y, y, math.nan, {})) for x, y in sorted(expected_by.items())]
            row.append(LinePanel(panel_title(panel), "mixed - alone", panel.best, lines, is_difference=True))
            numbers[panel] = lines
        if any(panel.lines for panel in row):
            figure, spots = line_figure([row], self.axis, lambda x: evidence.tick(self.axis, x))
            caption = (
                "Score of all data mixed minus that of the ability's own data alone, seed by seed; 95 % interval: "
                "Student's t over seeds, but never narrower than the problems allow. Below 0 mixing costs."
            )
            cells: list[dict[str, Cell]] = line_numbers(self.axis, numbers)
            section.parts.append(Drawing("conflict", section.title, caption, figure, cells, spots))
            header = ["", self.axis, "predicted", "mixed - alone", "p over problems"]
            section.parts.append(Table("conflict-table", section.title, header, rows, [], cells))
        return section

    def _differences(self, evidence: Evidence, panel: Panel, rest: Factors) -> list[tuple[float, Point, float]]:
        """Compute the difference at each value of the factor, with its p over problems."""
        alone = evidence.specialists(panel.ability, self.single)[0]
        found = []
        for x, group in evidence.along(Series(self.mixed), self.axis, rest):
            at = [g for y, g in evidence.along(alone, self.axis, rest) if y == x]
            others = at or [g for g in evidence.groups if g.config == alone.config and self.axis not in dict(g.factors)]
            if others and (pair := _difference(evidence, panel, group, others[0])):
                found.append((x, *pair))
        return found


def _difference(evidence: Evidence, panel: Panel, mixed: Group, alone: Group) -> tuple[Point, float] | None:
    ours, theirs = (
        {r.seed: float(r.value or 0.0) for r in evidence.final_of(group, panel)} for group in (mixed, alone)
    )
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    mean = student([ours[s] - theirs[s] for s in seeds])
    low, high, error, p = mean.low, mean.high, mean.error, math.nan
    files = [verdict_files(evidence, group, panel) for group in (alone, mixed)]
    if all(seed in side for side in files for seed in seeds):
        try:
            before, after = ([side[s][0] for s in seeds] for side in files)
            compared = compare_over_seeds(before, after, panel.metric)
        except ValueError:
            pass  # the factor changes the problems too, so they cannot be paired
        else:
            p, half = compared.p_value, max(compared.high - mean.value, mean.value - compared.low)
            if not math.isfinite(low) or half > mean.value - low:
                low, high = mean.value - half, mean.value + half
    by_seed = {s: ours[s] - theirs[s] for s in seeds}
    return Point(mean.value, low, high, error, by_seed), p


def _trend_words(evidence: Evidence, panel: Panel, axis: str, line: Sequence[tuple[float, Point]]) -> str:
    """Describe how the difference changes from the smallest to the largest value of the factor, seed by seed."""
    if len(line) < 2:
        return ""
    first, last = line[0][1], line[-1][1]
    seeds = sorted(set(first.by_seed) & set(last.by_seed))
    if not seeds:
        return ""
    change = student([last.by_seed[s] - first.by_seed[s] for s in seeds])
    shown = with_interval(change.value, change.low, change.high, panel.best, signed=True)
    ends = " and ".join(
        f"{number(p.value, panel.best, signed=True)} at {axis} {evidence.tick(axis, x)}" for x, p in (line[0], line[-1])
    )
    is_shown = math.isfinite(change.low) and not change.low <= 0 <= change.high
    verdict = ("conflict grows" if change.value < 0 else "conflict shrinks") if is_shown else "no trend shown"
    return f"mixing changes the score by {ends}; {verdict} ({shown})"
