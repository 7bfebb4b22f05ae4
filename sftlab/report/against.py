"""Settings as rows, each compared with a reference by paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftlab.report.evidence import Evidence, Group, Point
from sftlab.report.exhibit import Cell, Table, lies_in
from sftlab.report.figures import dot_figure
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Section, interval_words, panel_title, point_numbers, point_text
from sftlab.report.text import number, p_text, with_interval
from sftlab.report.verdicts import compare_over_seeds
from sftlab.stats.interval import LEVEL, student
from sftlab.stats.paired import Comparison, holm


@dataclass(frozen=True)
class Paired:
    """A group compared with the reference by one score.

    Attributes:
        group: The group.
        panel: The score.
        over_problems: The comparison over problems, each averaged over the seeds that both have.
        p_holm: Its p value after Holm's correction for all tests of the table.
        seeds: The seeds compared.
        change: Mean difference over seeds, with ``low`` and ``high`` of Student's interval over them; nan for one seed.
    """

    group: Group
    panel: Panel
    over_problems: Comparison
    p_holm: float
    seeds: list[int]
    change: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """True unless the problems and, with three or more of them, the seeds show a difference."""
        problems = self.p_holm < LEVEL and not self.over_problems.low <= 0 <= self.over_problems.high
        return not (problems and (len(self.seeds) < 3 or not self.low <= 0 <= self.high))

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        if math.isnan(self.over_problems.p_value):
            return "not compared"
        return "inside noise" if self.is_noise else "better" if self.change > 0 else "worse"


def add_rows(
    section: Section,
    evidence: Evidence,
    groups: Sequence[Group],
    reference: Group | None,
    beside: Callable[[list[str], list[list[str]], Sequence[Group]], list[str]] | None = None,
) -> None:
    """Add dots, scores and, against the reference, paired tests.

    Args:
        section: The section to add to.
        evidence: The study.
        groups: The groups in the order shown.
        reference: The group to compare with; None if there is none.
        beside: Adds columns to the table's header and rows, and returns notes on them.
    """
    points = {(g, panel): evidence.point(panel, g) for g in groups for panel in evidence.panels}
    if not any(points.values()):
        return
    name, labels = section.name.replace("_", "-"), [str(g) for g in groups]
    known = [p for p in points.values() if p]
    panels = [(panel_title(p), p.best, [points[g, p] for g in groups]) for p in evidence.panels]
    numbers = [
        {"strategy": str(g), "ability": panel.ability, "task": panel.task, **point_numbers(p)}
        for (g, panel), p in points.items()
        if p
    ]
    figure, spots = dot_figure(panels, labels)
    section.parts.append(Drawing(name, section.title, interval_words(known), figure, numbers, spots))
    table = _score_table(name, section.title, evidence.panels, groups, points, numbers)
    if beside:
        table.notes.extend(beside(table.header, table.rows, groups))
    section.parts.append(table)
    if evidence.loss_panels:
        section.parts.append(_loss_table(evidence, name, groups))
    if not reference:
        section.missing.append("a reference for paired tests")
        return
    tests, problems = paired_tests(evidence, [g for g in groups if g != reference], reference)
    section.missing += problems
    if tests:
        section.parts.append(_test_table(name, reference, tests))
        section.findings += _findings(reference, tests)


def _score_table(
    name: str,
    title: str,
    panels: Sequence[Panel],
    groups: Sequence[Group],
    points: dict[tuple[Group, Panel], Point | None],
    numbers: list[dict[str, Cell]],
) -> Table:
    rows = []
    for group in groups:
        mine = [points[group, panel] for panel in panels]
        mean = number(mean_of_best(mine, panels), 1)
        rows.append([str(group), *(point_text(p, panel.best) for p, panel in zip(mine, panels, strict=True)), mean])
    header = ["strategy", *(panel_title(panel) for panel in panels), "mean"]
    notes = ["Mean: each score divided by its best possible one, then averaged over abilities."]
    return Table(f"{name}-table", title, header, rows, notes, numbers)


def _loss_table(evidence: Evidence, name: str, groups: Sequence[Group]) -> Table:
    points = {(g, p): evidence.point(p, g) for g in groups for p in evidence.loss_panels}
    rows = [[str(g), *(point_text(points[g, p], None) for p in evidence.loss_panels)] for g in groups]
    numbers: list[dict[str, Cell]] = [
        {"strategy": str(g), "ability": panel.ability, **point_numbers(p)} for (g, panel), p in points.items() if p
    ]
    header = ["strategy", *(panel.ability for panel in evidence.loss_panels)]
    return Table(f"{name}-loss", "Loss on held-out data (lower is better)", header, rows, [], numbers, folded=True)


def mean_of_best(points: Sequence[Point | None], panels: Sequence[Panel]) -> float:
    """Compute the mean over abilities of the share of the best possible score; nan if a score is missing."""
    shares = [p.value / (panel.best or 1) for p, panel in zip(points, panels, strict=True) if p]
    return sum(shares) / len(shares) if shares and len(shares) == len(panels) else math.nan


def paired_tests(evidence: Evidence, groups: Sequence[Group], reference: Group) -> tuple[list[Paired], list[str]]:
    """Compare every group with the reference by every score; return also why some tests are missing."""
    found, lacking = [], []
    for group in groups:
        for panel in evidence.panels:
            ours, theirs = verdict_files(evidence, group, panel), verdict_files(evidence, reference, panel)
            seeds = sorted(set(ours) & set(theirs))
            if not seeds:
                lacking.append(f"verdicts on the same seed of {group} and {reference} ({panel_title(panel)})")
                continue
            try:
                comparison = compare_over_seeds(
                    [theirs[s][0] for s in seeds], [ours[s][0] for s in seeds], panel.metric
                )
            except ValueError as error:
                lacking.append(f"paired test of {group} ({panel_title(panel)}): {error}")
                continue
            change = student([ours[s][1] - theirs[s][1] for s in seeds])
            found.append(Paired(group, panel, comparison, math.nan, seeds, change.value, change.low, change.high))
    corrected = holm([test.over_problems.p_value for test in found])
    return [replace(t, p_holm=p) for t, p in zip(found, corrected, strict=True)], lacking


def verdict_files(evidence: Evidence, group: Group, panel: Panel) -> dict[int, tuple[Path, float]]:
    """Return the file of verdicts and the score by seed; files outside the study's folder are ignored."""
    return {
        r.seed: (evidence.folder / r.problems, float(r.value))
        for r in evidence.final_of(group, panel)
        if r.problems and r.value is not None and lies_in(evidence.folder / r.problems, evidence.folder)
    }


def _test_table(name: str, reference: Group, tests: Sequence[Paired]) -> Table:
    rows, numbers = [], []
    for t in tests:
        c, best = t.over_problems, t.panel.best
        over_seeds = "one seed" if len(t.seeds) == 1 else number(t.change, best, signed=True)
        if len(t.seeds) > 2:  # two seeds may agree by chance, which gives an interval of width zero
            over_seeds = with_interval(t.change, t.low, t.high, best, signed=True)
        problems = with_interval(c.difference, c.low, c.high, best, signed=True)
        count = f"{c.num_problems}" + (f" ({c.num_missing} missing)" if c.num_missing else "")
        tested = [problems, p_text(c.p_value), p_text(t.p_holm), over_seeds, t.verdict]
        rows.append([str(t.group), panel_title(t.panel), count, *tested])
        about: dict[str, Cell] = {"strategy": str(t.group), "ability": t.panel.ability, "task": t.panel.task}
        about |= {"num_problems": c.num_problems, "difference": c.difference, "low": c.low, "high": c.high}
        about |= {"p": c.p_value, "p_holm": t.p_holm, "num_seeds": len(t.seeds), "method": c.method}
        numbers.append(about | {"seeds_low": t.low, "seeds_high": t.high, "verdict": t.verdict})
    notes = [
        f"Each strategy minus {reference}, over the seeds that both have.",
        "Over problems: values of a problem averaged over seeds; McNemar's exact test where all values are 0 or 1, "
        "else a paired bootstrap; p Holm: corrected for all tests of this table (Holm 1979).",
        "Better or worse: p Holm < 0.05, the interval over problems leaves out 0 and, with three seeds or more, so "
        "does Student's interval over seeds. All else is inside noise.",
    ]
    header = ["strategy", "score", "problems", "difference over problems", "p", "p Holm", "over seeds", "verdict"]
    return Table(f"{name}-tests", f"Paired tests against {reference}", header, rows, notes, numbers)


def _findings(reference: Group, tests: Sequence[Paired]) -> list[str]:
    """Return a sentence for each strategy."""
    found = []
    for group in dict.fromkeys(t.group for t in tests):
        words = []
        for t in tests:
            if t.group == group:
                change = with_interval(t.change, math.nan, math.nan, t.panel.best, signed=True)
                words.append(f"{panel_title(t.panel)} {change} ({t.verdict})")
        found.append(f"**{group}** against {reference}: {', '.join(words)}.")
    return found
