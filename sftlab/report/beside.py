"""Several studies: their settings in one table, shared settings compared, and what each was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftlab.report.budgets import NAMES, TOLERANCE, budget_cells, budget_numbers
from sftlab.report.choosing import check_weights, weight_words, weighted_point
from sftlab.report.evidence import Evidence, Group, Point, read_evidence
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import dot_figure
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Section, interval_words, panel_title, point_numbers, point_text
from sftlab.report.style import style
from sftlab.report.text import number, slug, some_of
from sftlab.report.write import write_page
from sftlab.stats.interval import is_beyond_noise

_MOST_DRAWN = 40
Named = list[tuple[str, Evidence]]


def write_beside(folders: Sequence[Path], weights: Mapping[str, float] | None = None) -> Path:
    """Write a page that compares studies, into the report folder of the first.

    Args:
        folders: The folders of two or more studies.
        weights: The weight of each ability; 1 by default.

    Returns:
        The page.

    Raises:
        ValueError: A folder is not a study, one is named twice, or they have no score in common.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("report: a study is named twice; name studies of which no two are the same")
    studies = [replace(read_evidence(folder), weights=dict(weights or {})) for folder in folders]
    shared = [panel for panel in studies[0].panels if all(panel in other.panels for other in studies[1:])]
    if not shared:
        found = "; ".join(f"{s.study} has {', '.join(map(panel_title, s.panels)) or 'none'}" for s in studies)
        raise ValueError(f"report: these studies have no score in common: {found}")
    for study in studies:
        check_weights(study)
    names = [study.study for study in studies]
    labels = [name if names.count(name) == 1 else str(study.folder) for name, study in zip(names, studies, strict=True)]
    named = list(zip(labels, studies, strict=True))
    about = {
        "name": "side by side",
        "title": " beside ".join(labels),
        "question": " / ".join(dict.fromkeys(study.question for study in studies if study.question)),
        "facts": " \u00b7 ".join(f"{label}: {len(study.runs)} runs" for label, study in named),
    }
    report = folders[0] / "report"
    report.mkdir(exist_ok=True)
    with style():
        sections = [_settings(named, shared), _shared(named, shared)]
        sections = [section for section in sections if not section.is_empty]
        return write_page(report / slug("beside " + " ".join(labels[1:])), sections, about)


class _Row(NamedTuple):
    """A setting of a study: its score in every panel, and their weighted mean."""

    label: str
    study: Evidence
    group: Group
    points: list[Point]
    mean: Point


def _settings(named: Named, panels: list[Panel]) -> Section:
    """Return every setting of every study, the best first."""
    section = Section("settings", "All settings")
    for label, study in named:
        section.missing += [f"{label}: {line}" for line in study.missing(study.configs)]
    rows = _rows(named, panels)
    if not rows:
        return section
    title, numbers = "Settings of all studies", [_numbers(row, panels) for row in rows]
    drawn = rows[:_MOST_DRAWN]
    columns = [(panel_title(p), p.best, [row.points[i] for row in drawn]) for i, p in enumerate(panels)]
    figure, spots = dot_figure(columns, [f"{row.label}: {row.group}" for row in drawn])
    caption = interval_words([point for row in drawn for point in row.points])
    if len(rows) > len(drawn):
        caption += f" The best {len(drawn)} of {len(rows)}."
    section.parts.append(Drawing("settings", title, caption, figure, numbers, spots))
    header = ["study", "setting", *map(panel_title, panels), "weighted mean", *NAMES.values()]
    cells = [_cells(row, panels) for row in rows]
    section.parts.append(Table("settings-table", title, header, cells, [], numbers))
    section.findings += _findings(rows, named)
    return section


def _rows(named: Named, panels: list[Panel]) -> list[_Row]:
    """Return the settings that have a score in every panel, by descending weighted mean."""
    best, rows = [panel.best or 1.0 for panel in panels], []
    for label, study in named:
        weights = [study.weights.get(panel.ability, 1.0) for panel in panels]
        for group in study.groups:
            points = [point for panel in panels if (point := study.point(panel, group))]
            if len(points) == len(panels):
                mean = weighted_point(points, best, weights if sum(weights) > 0 else None)
                rows.append(_Row(label, study, group, points, mean))
    return sorted(rows, key=lambda row: -row.mean.value)


def _cells(row: _Row, panels: list[Panel]) -> list[str]:
    scores = map(point_text, row.points, [panel.best for panel in panels])
    budget = budget_cells(row.study.budget(row.group))
    return [row.label, str(row.group), *scores, number(row.mean.value, 1), *budget]


def _numbers(row: _Row, panels: list[Panel]) -> dict[str, Cell]:
    about: dict[str, Cell] = {"study": row.label, "setting": str(row.group)}
    about |= {panel_title(panel): point.value for panel, point in zip(panels, row.points, strict=True)}
    return about | {"weighted_mean": row.mean.value} | budget_numbers(row.study.budget(row.group))


def _findings(rows: list[_Row], named: Named) -> list[str]:
    """Name the best setting of all, then the best of each other study."""
    top, weights = rows[0], weight_words(named[0][1])
    if len(rows) > 1 and top.mean.value - rows[-1].mean.value < 1e-12:
        same = f"all {len(rows)} settings have the same weighted mean, {number(top.mean.value, 1)}"
        return [f"Nothing can be chosen for {weights}: {same}."]
    found = [f"Best setting of all for {weights}: **{top.group}** of {top.label} ({number(top.mean.value, 1)})."]
    for label, _ in named:
        best = next((row for row in rows if row.label == label), None)
        if best is not None and label != top.label:
            found.append(f"Best of {label}: {best.group} ({number(best.mean.value, 1)}).")
    return found


def _shared(named: Named, panels: list[Panel]) -> Section:
    """Compare the settings of the first study that another one has too: each study minus the first."""
    section = Section("shared", "What the studies share")
    (first, base), *others = named
    rows: list[list[str]] = []
    numbers: list[dict[str, Cell]] = []
    for label, study in others:
        both = [(mine, theirs) for mine in base.groups for theirs in study.groups if mine == theirs]
        beyond = []
        for mine, theirs in both:
            for panel in panels:
                a, b = base.point(panel, mine), study.point(panel, theirs)
                if a and b:
                    change, error = b.value - a.value, math.hypot(a.error, b.error)
                    verdict = "more than noise" if is_beyond_noise(change, error) else "inside noise"
                    shown = number(change, panel.best, signed=True)
                    beyond += [f"{mine}, {panel_title(panel)} {shown}"] if verdict == "more than noise" else []
                    texts = [point_text(a, panel.best), point_text(b, panel.best), shown, verdict]
                    rows.append([label, str(mine), panel_title(panel), *texts])
                    about: dict[str, Cell] = {"study": label, "setting": str(mine), "ability": panel.ability}
                    about |= {f"first_{k}": v for k, v in point_numbers(a).items()}
                    numbers.append(about | point_numbers(b) | {"difference": change, "verdict": verdict})
        section.findings += _words(first, label, both, beyond)
        section.warnings += _budget_words(first, base, label, study, both)
    if rows:
        notes = [
            f"Settings of the same config and factors. Difference: the study minus {first}; beyond noise where the "
            "normal interval of the difference leaves out 0. Whether data, base and budget are the same, configs tell."
        ]
        header = ["study", "setting", "score", first, "here", "difference", "verdict"]
        section.parts.append(Table("shared-table", f"Against {first}", header, rows, notes, numbers))
    return section


def _words(first: str, label: str, both: Sequence[tuple[Group, Group]], beyond: Sequence[str]) -> list[str]:
    if not both:
        return [f"{label} has no setting in common with {first}."]
    start = f"{label} against {first}, {len(both)} setting{'s' * (len(both) != 1)} in common"
    if not beyond:
        return [f"{start}: no difference beyond noise."]
    return [f"{start}: {some_of(beyond, between='; ')}."]


def _budget_words(
    first: str, base: Evidence, label: str, study: Evidence, both: Sequence[tuple[Group, Group]]
) -> list[str]:
    differing = []
    for mine, theirs in both:
        a, b = base.budget(mine).tokens, study.budget(theirs).tokens
        if a is not None and b is not None and max(a, b) > (1 + TOLERANCE) * min(a, b):
            differing.append(f"{mine} ({a:,} and {b:,} tokens)")
    if not differing:
        return []
    return [f"Budgets differ between {first} and {label}: {some_of(differing)}."]
