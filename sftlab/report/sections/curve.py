"""Score against any numeric factor, and which of its values is best for the reader's weights."""

from __future__ import annotations

import numpy as np

from sftlab.report.budgets import budget_warning
from sftlab.report.choosing import Setting, choose, weight_words, weighted_point
from sftlab.report.evidence import Evidence, Factors, Point, Series, number_of
from sftlab.report.exhibit import Cell
from sftlab.report.figures import Line
from sftlab.report.fronts import front_figure
from sftlab.report.lines import line_table, lines_drawing, points_in, rest_text
from sftlab.report.paper_numbers import paper_table
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Figure, Section, interval_words
from sftlab.report.text import slug
from sftlab.stats.tradeoff import pareto_front


class Curve(Figure):
    """Score against a factor for each ability, the best value for the weights, and the Pareto front.

    Args:
        axis: The factor, a number: ``k``, ``learning_rate``, ``fraction``.
        title: Title of the section.
        xlabel: Label of the axis; by default the factor's name.
    """

    factor_arguments = ("axis",)

    def __init__(self, axis: str, title: str = "", xlabel: str = "") -> None:
        self.axis, self.xlabel = axis, xlabel or axis
        self.title, self.about = title or f"Score against {self.xlabel}", ""

    def section(self, evidence: Evidence) -> Section:
        """Show the curves, then what to choose on each line."""
        section = Section(self.axis, self.title)
        section.missing = evidence.missing(evidence.configs)
        series = [Series(c) for c in evidence.configs if evidence.rests(Series(c), self.axis)]
        if not series or not evidence.panels:
            section.missing.append(f"no run with a factor named {self.axis} has a score")
            return section
        several = len(series) > 1
        lines: dict[Panel, dict[str, Line]] = {
            panel: {
                rest_text(evidence, rest, one.config if several else "") or one.config: line
                for one in series
                for rest in evidence.rests(one, self.axis)
                if (line := evidence.line(panel, one, self.axis, rest))
            }
            for panel in evidence.panels
        }
        name, title = slug(self.axis), f"Score against {'the ' * (self.xlabel != self.axis)}{self.xlabel}"
        caption = f"{self.about}{interval_words(points_in(lines.values()))}"
        section.parts.append(lines_drawing(evidence, name, title, caption, lines, self.axis, self.xlabel))
        section.parts.append(line_table(evidence, f"{name}-table", title, self.axis, self.axis, lines))
        for one in series:
            for rest in evidence.rests(one, self.axis):
                self._choose(evidence, section, one, rest)
        return section

    def covers(self, evidence: Evidence) -> bool:
        """Return whether all settings of a study lie on one line of this figure, so that its choice is the study's."""
        lines = {(g.config, tuple(f for f in g.factors if f[0] != self.axis)) for g in evidence.groups}
        return len(lines) == 1 and all(self.axis in dict(g.factors) for g in evidence.groups)

    def _choose(self, evidence: Evidence, section: Section, series: Series, rest: Factors) -> None:
        points = {panel: dict(evidence.line(panel, series, self.axis, rest)) for panel in evidence.panels}
        xs = sorted(set.intersection(*(set(mine) for mine in points.values())))
        if len(xs) < 2:
            where = f"{series.config} {rest_text(evidence, rest)}".strip()
            section.missing.append(f"two values of {self.axis} with every score ({where})")
            return
        at = dict(evidence.along(series, self.axis, rest))
        groups = [at[x] for x in xs]
        settings = [
            Setting(evidence.tick(self.axis, x), [points[p][x] for p in evidence.panels], evidence.budget(group), x)
            for x, group in zip(xs, groups, strict=True)
        ]
        label = f" ({rest_text(evidence, rest)})" if rest else ""
        name = slug("-".join([self.axis, "front", *(evidence.text(*pair) for pair in rest)]))
        general = general_abilities(evidence, series.config, self.axis)
        parts = _sides(evidence, points, xs, general)
        front = pareto_front(np.array([[p.value for p in pair] for pair in parts])) if parts else None
        choice = choose(evidence, settings)
        front = None if choice.nothing_to_choose else front
        if front is not None:
            section.parts.append(self._front_drawing(name, label, settings, parts, front, choice.best, general))
        section.parts.append(choice.table(f"{name}-choice", f"Which {self.axis}{label}", self.axis, front))
        if choice.nothing_to_choose:
            section.findings.append(
                f"No {self.axis}{label} can be chosen for {weight_words(evidence)}: {choice.nothing_to_choose}."
            )
            return
        best = f"Best {self.axis}{label} for {weight_words(evidence)}: **{choice.best}**"
        section.findings.append(f"{best}; {choice.doubts(f'{self.axis} = ')}.")
        if front is not None:
            on = ", ".join(setting.label for setting, is_on in zip(settings, front, strict=True) if is_on)
            section.findings.append(
                f"No {self.axis} beats these{label} in both specialised and general score (Pareto front): {on}."
            )
        section.warnings += [line for line in budget_warning(evidence, groups) if line not in section.warnings]

    def _front_drawing(
        self,
        name: str,
        label: str,
        settings: list[Setting],
        parts: list[tuple[Point, Point]],
        front: np.ndarray,
        best: str,
        general: list[str],
    ) -> Drawing:
        caption = (
            f"Mean of the specialised scores against that of {' and '.join(general)}, one point for each {self.axis}, "
            f"with 95 % intervals. The line joins the Pareto front: no {self.axis} is as good by both and better by "
            f"one. Ringed: the best {self.axis} for the weights."
        )
        marks = [(s.label, x, y, bool(f)) for s, (x, y), f in zip(settings, parts, front, strict=True)]
        numbers: list[dict[str, Cell]] = [
            {self.axis: text, "specialised": x.value, "general": y.value, "on_front": f, "best": text == best}
            for text, x, y, f in marks
        ]
        figure, spots = front_figure(
            marks, self.axis, "specialised abilities (share of the best)", " and ".join(general), best
        )
        return Drawing(name, f"Specialised against general{label}", caption, figure, numbers, spots)


class ReplayFraction(Curve):
    """Score against the replay fraction k, which k to choose, and the paper's numbers.

    Args:
        axis: The factor that is k.
    """

    def __init__(self, axis: str = "k") -> None:
        super().__init__(axis, "The replay fraction k", "replay fraction k")
        self.about = "Score against k on a log-2 axis; k = 0, mixed sequential, stands left of the break. "

    def section(self, evidence: Evidence) -> Section:
        """Show the curves and choices, with the paper's table."""
        section = super().section(evidence)
        section.parts.append(paper_table("k"))
        return section


def general_abilities(evidence: Evidence, config: str, axis: str) -> list[str]:
    """Return the abilities that the last stage trains in full at the smallest value; the others are specialised."""
    rows = [r for r in evidence.final if r.config == config and axis in r.factors]
    values = [number_of(r.factors[axis], axis) for r in rows]
    last = {r.ability for r, value in zip(rows, values, strict=True) if r.full and value == min(values)}
    found = [name for name in evidence.abilities if name in last]
    return found if 0 < len(found) < len(evidence.abilities) else [n for n in evidence.abilities if n == "general"]


def _sides(
    evidence: Evidence, points: dict[Panel, dict[float, Point]], xs: list[float], general: list[str]
) -> list[tuple[Point, Point]]:
    """Return the specialised and the general score at each x, as means over abilities of scores over their best."""
    sides = [[p for p in evidence.panels if (p.ability in general) == is_general] for is_general in (False, True)]
    if not all(sides):
        return []
    return [
        (
            weighted_point([points[p][x] for p in sides[0]], [p.best or 1.0 for p in sides[0]]),
            weighted_point([points[p][x] for p in sides[1]], [p.best or 1.0 for p in sides[1]]),
        )
        for x in xs
    ]
