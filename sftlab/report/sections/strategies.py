"""Strategies as rows, each compared with one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sftlab.report.against import add_rows, mean_of_best
from sftlab.report.budgets import budget_warning
from sftlab.report.evidence import Evidence, Group
from sftlab.report.paper_numbers import TABLES
from sftlab.report.section import Figure, Section

ROWS = ("general_only", "math_only", "code_only", "multi_task", "sequential", "mixed_sequential", "dmt")


class Strategies(Figure):
    """Strategies as rows, with paired tests against a reference.

    Args:
        rows: Configs in the order shown; others follow. As a mapping: the row of the paper's table that stands beside
            each. The paper's names where left out.
        reference: The config to compare with; by default dmt, or else mixed_sequential.
    """

    config_arguments = ("rows", "reference")

    def __init__(self, rows: Sequence[str] | Mapping[str, str] | None = None, reference: str | None = None) -> None:
        self.wanted = list(ROWS if rows is None else rows)
        self.paper = dict(rows) if isinstance(rows, Mapping) else {name: name for name in self.wanted}
        self.reference = reference

    def section(self, evidence: Evidence) -> Section:
        """Show the rows, their scores, tests and a summary."""
        section = Section("strategies", "Strategies")
        names = [*self.wanted, *(name for name in evidence.configs if name not in self.wanted)]
        section.missing = evidence.missing(names)
        section.missing += [f"config {name}" for name in self.wanted if name not in evidence.configs]
        groups = sorted(evidence.groups, key=lambda g: names.index(g.config))
        reference = self._reference(groups)
        add_rows(section, evidence, groups, reference, self._beside)
        means = {str(g): mean_of_best([evidence.point(p, g) for p in evidence.panels], evidence.panels) for g in groups}
        ranked = sorted(((m, g) for g, m in means.items() if not math.isnan(m)), reverse=True)
        if ranked:
            places = ", ".join(f"{name} {mean:.1%}" for mean, name in ranked)
            section.findings.insert(0, f"Mean over abilities, each as a share of its best possible score: {places}.")
        section.warnings += budget_warning(evidence, [g for g in groups if str(g) in means])
        return section

    def _reference(self, groups: Sequence[Group]) -> Group | None:
        for name in (self.reference,) if self.reference else ("dmt", "mixed_sequential"):
            for group in groups:
                if group.config == name:
                    return group
        return None

    def _beside(self, header: list[str], rows: list[list[str]], groups: Sequence[Group]) -> list[str]:
        """Put the paper's numbers beside the rows; return the notes on them."""
        paper = TABLES["strategies"]
        (_, *sizes), *theirs = paper.rows
        cells = {name: scores for name, *scores in theirs}
        if not any(self.paper.get(group.config) in cells for group in groups):
            return []
        header += [f"paper {size}" for size in sizes]
        for row, group in zip(rows, groups, strict=True):
            row += cells.get(self.paper.get(group.config, ""), ["-"] * len(sizes))
        return [f"Paper: GSM8K / HumanEval / MT-Bench, {paper.title}.", *paper.notes]
