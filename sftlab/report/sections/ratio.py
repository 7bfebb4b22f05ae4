"""Three grids over k: does the ratio of specialised to general data matter, or the amount?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sftlab.report.evidence import Evidence, Series
from sftlab.report.lines import add_comparison, rest_text
from sftlab.report.paper_numbers import paper_table
from sftlab.report.rows import Panel
from sftlab.report.section import Figure, Section, panel_title
from sftlab.report.text import number
from sftlab.stats.interval import is_beyond_noise

GRIDS = {
    "full_general": "all general data, k of the specialised",
    "full_specialised": "all specialised data, k of the general",
    "small_general": "1/64 of the general data, k of the specialised",
}


class Ratio(Figure):
    """Grids in which one side of the data is fixed and the other grows.

    Args:
        grids: What each config varies, in words.
        axis: The factor that grows; k, or fraction where there is no k, if left out.
    """

    config_arguments = ("grids",)
    factor_arguments = ("axis",)

    def __init__(self, grids: Mapping[str, str] = GRIDS, axis: str | None = None) -> None:
        self.grids, self.axis = dict(grids), axis

    def section(self, evidence: Evidence) -> Section:
        """Show a panel per ability with a line per grid."""
        section = Section("ratio", "Amount or ratio: three grids" if len(self.grids) == 3 else "Amount or ratio")
        section.missing = evidence.missing(self.grids)
        section.missing += [f"config {name}" for name in self.grids if name not in evidence.configs]
        has_k = any("k" in dict(g.factors) for g in evidence.groups)
        axis = self.axis or ("k" if has_k else "fraction")
        add_comparison(section, evidence, list(self.grids), axis, self.axis or "k")
        section.lead = "; ".join(f"{name}: {text}" for name, text in self.grids.items()) + "."
        for panel in evidence.panels:
            words = [text for config in self.grids for text in _range_words(evidence, panel, config, axis)]
            if words:
                section.findings.append(
                    f"{panel_title(panel)}, from the smallest to the largest {self.axis or 'k'}: {'; '.join(words)}."
                )
        section.parts.append(paper_table("ratio"))
        return section


def _range_words(evidence: Evidence, panel: Panel, config: str, axis: str) -> list[str]:
    """Describe how much the score moves over the axis, for each size."""
    found = []
    for rest in evidence.rests(Series(config), axis):
        line = evidence.line(panel, Series(config), axis, rest)
        if len(line) < 2:
            continue
        (_, first), (_, last) = line[0], line[-1]
        change, error = last.value - first.value, math.hypot(first.error, last.error)
        verdict = "more than noise" if is_beyond_noise(change, error) else "inside noise"
        shown = number(change, panel.best, signed=True)
        found.append(f"{rest_text(evidence, rest, config)} {shown} ({verdict})")
    return found
