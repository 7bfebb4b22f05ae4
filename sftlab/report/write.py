"""A study's report: one self-contained page, and every figure and table as a file of its own."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftlab.files import whole_file, write_text
from sftlab.report.choosing import check_weights
from sftlab.report.evidence import Evidence, read_evidence
from sftlab.report.exhibit import Picture, Table, csv_of
from sftlab.report.named import figures_of
from sftlab.report.page import guarded, render
from sftlab.report.section import Drawing, Figure, Section
from sftlab.report.sections.cost import Cost, Failures
from sftlab.report.sections.curve import Curve
from sftlab.report.sections.exhibits import exhibit_sections
from sftlab.report.sections.forgetting import Forgetting
from sftlab.report.sections.search import Search
from sftlab.report.sections.setting import BestSetting
from sftlab.report.style import style
from sftlab.report.svg import save
from sftlab.report.text import slug, some_of
from sftlab.screen import visible

SUMMARY = "summary.txt"
"""The start of the page as plain text, for terminals."""


def write_report(folder: Path, weights: Mapping[str, float] | None = None) -> Path:
    """Write <folder>/report/: index.html, and PNG, SVG, CSV and Markdown of everything in it.

    Args:
        folder: The study's folder.
        weights: The weight of each ability in the choice of a setting; 1 by default.

    Returns:
        The page.

    Raises:
        ValueError: The folder is not a study, a line of its files is malformed, or a weight names no ability.
    """
    evidence = replace(read_evidence(folder), weights=dict(weights or {}))
    check_weights(evidence)
    figures = figures_of(evidence.figures, f"{folder / 'study.json'}, figures")
    with style():
        seeds = ", ".join(map(str, evidence.seeds))
        facts = f"{len(evidence.runs)} runs \u00b7 seed{'s' * (len(evidence.seeds) != 1)} {seeds}"
        if evidence.uncounted:
            others = some_of(evidence.uncounted)
            facts += f" \u00b7 in its folder and not counted, for the study no longer has them: {others}"
        about = {"name": evidence.study, "title": evidence.title, "question": evidence.question, "facts": facts}
        return write_page(folder / "report", sections_of(evidence, figures), about)


def sections_of(evidence: Evidence, figures: Sequence[Figure]) -> list[Section]:
    """Return the sections of the study's figures, then those of every report that are not among the figures."""
    sections = [figure.section(evidence) for figure in figures]
    is_chosen = any(is_choice(figure, evidence) for figure in figures) or has_specialists_alone(evidence)
    always = [Forgetting(), *([] if is_chosen else [BestSetting()])]
    named = {type(figure) for figure in figures}
    sections += [one.section(evidence) for one in reversed(always) if type(one) not in named]
    sections += exhibit_sections(evidence)
    sections += [one.section(evidence) for one in (Cost(), Failures()) if type(one) not in named]
    return [section for section in sections if not section.is_empty]


def is_choice(figure: Figure, evidence: Evidence) -> bool:
    """Return whether a figure already names the best setting; a search's does so for its own weights."""
    is_searched = isinstance(figure, Search) and not evidence.weights
    return is_searched or (isinstance(figure, Curve) and figure.covers(evidence))


def has_specialists_alone(evidence: Evidence) -> bool:
    """Return whether every setting trains one ability only, not all the same: then none is best without weights."""
    trained = {frozenset(r.ability for r in evidence.results_of(g) if r.full) for g in evidence.groups}
    return not evidence.weights and len(trained) > 1 and all(len(abilities) == 1 for abilities in trained)


def write_page(folder: Path, sections: Sequence[Section], about: Mapping[str, str]) -> Path:
    """Write index.html, summary.txt and a file for everything in it.

    Args:
        folder: Created if missing.
        sections: The sections in the order shown.
        about: The head of the page: name, title, question, facts.

    Returns:
        The page.
    """
    folder.mkdir(exist_ok=True)
    files = _Files(folder)
    shown = [_shown(section, files) for section in sections]
    page = folder / "index.html"
    write_text(folder / SUMMARY, "".join(f"{line}\n" for line in _summary(sections)))
    write_text(page, render("report.html", sections=shown, **about))
    return page


def _summary(sections: Sequence[Section]) -> Iterator[str]:
    """Return the start of the page as plain text: one line per finding or warning, below its section's title."""
    told = set[str]()
    for section in sections:
        warnings = [warning for warning in section.warnings if warning not in told]
        told.update(warnings)
        lines = [*section.findings, *(f"Warning: {warning}" for warning in warnings)]
        if lines:
            yield _one_line(section.title)
        yield from (f"  {_one_line(line.replace('**', ''))}" for line in lines)


def _one_line(text: str) -> str:
    """Make a text one line, without control characters."""
    return visible(" ".join(text.split()))


class _Files:
    """Names of files and anchors of one report, each used once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._given: set[str] = {"index", "summary"}

    def name(self, wanted: str) -> str:
        """Return a unique name of letters, digits and hyphens."""
        name, number = slug(wanted), 2
        while name in self._given:
            name, number = f"{slug(wanted)}-{number}", number + 1
        self._given.add(name)
        return name

    def links(self, name: str, *endings: str) -> list[dict[str, str]]:
        """Return the links of a page."""
        return [{"name": f"{name}.{ending}", "kind": ending.upper()} for ending in endings]


def _shown(section: Section, files: _Files) -> dict[str, Any]:
    """Return what the template shows of a section, and write its files."""
    anchor = files.name(f"section {section.name}")
    page = None
    if section.page:
        page = f"{files.name(section.name)}.html"
        write_text(files.folder / page, guarded(section.page.read_text(encoding="utf-8", errors="replace")))
    return {
        "anchor": anchor,
        "title": section.title,
        "lead": section.lead,
        "findings": section.findings,
        "warnings": section.warnings,
        "missing": list(dict.fromkeys(section.missing)),
        "parts": [_part(part, files) for part in section.parts],
        "page": page,
    }


def _part(part: Drawing | Table | Picture, files: _Files) -> dict[str, Any]:
    if isinstance(part, Drawing):
        from markupsafe import Markup

        name = files.name(part.name)
        svg = Markup(save(part.figure, files.folder, name, part.spots))
        write_text(files.folder / f"{name}.csv", csv_of(part.numbers))
        about = {"title": part.title, "caption": part.caption, "files": files.links(name, "png", "svg", "csv")}
        return {"kind": "drawing", "svg": svg, **about}
    if isinstance(part, Table):
        name = files.name(part.name)
        write_text(files.folder / f"{name}.csv", part.as_csv())
        write_text(files.folder / f"{name}.md", part.as_markdown())
        return {"kind": "table", "table": part, "files": files.links(name, "csv", "md")}
    name = files.name(f"picture-{part.title}-{part.path.parent.name}")
    with whole_file(files.folder / f"{name}.png") as partial:
        shutil.copyfile(part.path, partial)
    data = f"data:image/png;base64,{base64.b64encode(part.path.read_bytes()).decode()}"
    about = {"title": part.title, "caption": part.caption, "files": files.links(name, "png")}
    return {"kind": "picture", "data": data, **about}
