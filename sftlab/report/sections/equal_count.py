"""Equally many examples of each source, against the same fraction of each."""

from __future__ import annotations

import math

from sftlab.report.evidence import Evidence, Point, Series
from sftlab.report.lines import add_comparison, rest_text
from sftlab.report.section import Figure, Section, panel_title
from sftlab.stats.interval import is_beyond_noise


class EqualCount(Figure):
    """Two ways of mixing at the same amounts.

    Args:
        proportional: The config that takes the same fraction of each source.
        equal: The config that takes equally many examples of each.
        axis: The factor that is the amount of data.
    """

    config_arguments = ("proportional", "equal")
    factor_arguments = ("axis",)

    def __init__(self, proportional: str = "proportional", equal: str = "equal_count", axis: str = "fraction") -> None:
        self.configs, self.axis = [proportional, equal], axis

    def section(self, evidence: Evidence) -> Section:
        """Show a panel per ability with a line for each config."""
        section = Section("equal_count", "Equal count against equal proportion")
        section.missing = evidence.missing(self.configs)
        section.missing += [f"config {name}" for name in self.configs if name not in evidence.configs]
        add_comparison(section, evidence, self.configs, self.axis, self.axis)
        series = [Series(config) for config in self.configs]
        for panel in evidence.panels:
            for rest in evidence.rests(series[0], self.axis):
                pairs = [dict(evidence.line(panel, one, self.axis, rest)) for one in series]
                both = sorted(set(pairs[0]) & set(pairs[1]))
                beyond = [x for x in both if _differ(pairs[0][x], pairs[1][x])]
                where = ", ".join(evidence.tick(self.axis, x) for x in beyond)
                words = f"differ by more than noise at {where}" if beyond else "differ by no more than noise"
                if both:
                    title = " ".join([panel_title(panel), rest_text(evidence, rest)]).strip()
                    section.findings.append(
                        f"{title}: equal count and equal proportion {words} ({len(both)} {self.axis}s)."
                    )
        return section


def _differ(a: Point, b: Point) -> bool:
    return is_beyond_noise(a.value - b.value, math.hypot(a.error, b.error))
