"""A study's report: one page that needs nothing else, and every figure and table as a file of its own."""

from __future__ import annotations

import base64
import html
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sftlab.files import whole_file, write_text
from sftlab.report.evidence import Evidence, read_evidence
from sftlab.report.exhibit import Picture, Table, csv_of
from sftlab.report.figures import save, style
from sftlab.report.page import CSS
from sftlab.report.paper_numbers import TABLES
from sftlab.report.section import Drawing, Section
from sftlab.report.sections import growth, keeping, mixing, replay, strategies
from sftlab.report.sections.inside import inside
from sftlab.report.text import slug

KINDS: dict[str, Callable[[Evidence], Section]] = {
    "scaling": growth.scaling,
    "single_against_mixed": mixing.single_against_mixed,
    "ratio": mixing.ratio,
    "strategies": strategies.strategies,
    "equal_count": mixing.equal_count,
    "leave_one_out": strategies.leave_one_out,
}


def write_report(folder: Path, weights: Mapping[str, float] | None = None) -> Path:
    """Write <folder>/report/: index.html, and PNG, SVG, CSV and Markdown of everything in it.

    Args:
        folder: Of a study.
        weights: What each ability counts in the choice of k; 1 where left out.

    Returns:
        The page.

    Raises:
        ValueError: The folder is no study, a line of its files is malformed, or a weight names no ability.
    """
    evidence = read_evidence(folder)
    if unknown := sorted(set(evidence.figures) - {*KINDS, "k"}):
        known = ", ".join([*KINDS, "k"])
        raise ValueError(f"{folder / 'study.json'}: figures: unknown {', '.join(unknown)}; known are {known}")
    with style():
        sections = [_section(evidence, kind, weights or {}) for kind in evidence.figures]
        sections += [keeping.keeping(evidence), *inside(evidence), keeping.cost(evidence)]
        if failed := keeping.failures(evidence):
            sections.append(failed)
        report = folder / "report"
        report.mkdir(exist_ok=True)
        bodies = [_section_html(section, report) for section in sections]
    page = report / "index.html"
    write_text(page, _page(evidence, sections, bodies))
    return page


def _section(evidence: Evidence, kind: str, weights: Mapping[str, float]) -> Section:
    section = replay.replay(evidence, weights) if kind == "k" else KINDS[kind](evidence)
    if kind != "strategies" and (table := TABLES.get(kind)):  # there they stand beside the user's own
        header, *rows = table.rows
        title = f"The paper's numbers: GSM8K / HumanEval / MT-Bench ({table.title})"
        name = f"{section.name.replace('_', '-')}-paper"
        section.parts.append(Table(name, title, header, rows, list(table.notes), folded=True))
    return section


def _section_html(section: Section, folder: Path) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{_text(section.title)}</h2>"]
    if section.lead:
        parts.append(f"<p>{_text(section.lead)}</p>")
    for part in section.parts:
        if isinstance(part, Drawing):
            parts.append(_drawing_html(part, folder))
        elif isinstance(part, Table):
            parts.append(_table_html(part, folder))
        else:
            parts.append(_picture_html(part, folder))
    if section.page:
        with whole_file(folder / f"{section.name}.html") as partial:
            shutil.copyfile(section.page, partial)
        parts.append(f'<p><a href="{section.name}.html">The whole page</a></p>')
    if section.missing:
        lines = "".join(f"<li>{_text(words)}</li>" for words in dict.fromkeys(section.missing))
        count = len(dict.fromkeys(section.missing))
        parts.append(f"<details class=missing open><summary>Missing: {count}</summary><ul>{lines}</ul></details>")
    return "\n".join([*parts, "</section>"])


def _drawing_html(drawing: Drawing, folder: Path) -> str:
    svg = save(drawing.figure, folder, drawing.name)
    write_text(folder / f"{drawing.name}.csv", csv_of(drawing.numbers))
    label = html.escape(f"{drawing.title}. {drawing.caption}", quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    links = _links(drawing.name, ("png", "svg", "csv"))
    caption = f"<figcaption><b>{_text(drawing.title)}.</b> {_text(drawing.caption)} {links}</figcaption>"
    return f"<figure><div class=scroll>{svg}</div>{caption}</figure>"


def _table_html(table: Table, folder: Path) -> str:
    write_text(folder / f"{table.name}.csv", table.as_csv())
    write_text(folder / f"{table.name}.md", table.as_markdown())
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    wide = " class=wide" * (len(table.header) > 7)
    body = f"<div class=scroll><table{wide}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    body += f"<ul class=notes>{notes}</ul>" if notes else ""
    title = f"{_text(table.title)} {_links(table.name, ('csv', 'md'))}"
    if table.folded:
        return f"<details><summary>{title}</summary>{body}</details>"
    return f"<h3>{title}</h3>{body}"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _cell(cell: str) -> str:
    kind = " class=noise" if cell == "inside noise" else " class=lines" if "\n" in cell else ""
    kind = kind or " class=short" * (len(cell) < 44)
    return f"<td{kind}>{_text(cell)}</td>"


def _picture_html(picture: Picture, folder: Path) -> str:
    name = f"picture-{slug(picture.title)}-{slug(picture.path.parent.name)}"
    with whole_file(folder / f"{name}.png") as partial:
        shutil.copyfile(picture.path, partial)
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img alt="{html.escape(picture.title, quote=True)}" src="data:image/png;base64,{data}">'
    caption = f"<b>{_text(picture.title)}.</b> {_text(picture.caption)} {_links(name, ('png',))}"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _links(name: str, endings: Sequence[str]) -> str:
    links = " ".join(f'<a href="{name}.{ending}">{ending.upper()}</a>' for ending in endings)
    return f"<span class=links>{links}</span>"


def _text(words: str) -> str:
    """Escaped; **bold** is the one mark."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(words, quote=False))


def _page(evidence: Evidence, sections: Sequence[Section], bodies: Sequence[str]) -> str:
    contents = "".join(f'<li><a href="#{s.name}">{_text(s.title)}</a></li>' for s in sections)
    summary = "".join(
        f'<h3><a href="#{s.name}">{_text(s.title)}</a></h3>{_list(s.findings)}' for s in sections if s.findings
    )
    seeds = ", ".join(map(str, evidence.seeds))
    facts = f"{len(evidence.runs)} runs · seed{'s' * (len(evidence.seeds) != 1)} {seeds}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(evidence.title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>
<nav aria-label="Contents"><b>{_text(evidence.study)}</b><ol>{contents}</ol></nav>
<main>
<header><h1>{_text(evidence.title)}</h1>
<p class=question>{_text(evidence.question)}</p><p class=facts>{facts}</p></header>
<section id="summary"><h2>What it shows</h2>{summary}</section>
{chr(10).join(bodies)}
</main>
</body>
</html>
"""
