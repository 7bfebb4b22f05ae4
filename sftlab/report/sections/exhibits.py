"""Findings of other tools and callbacks about a study: maps, tags, leaks, cards, heat maps of its runs.

<study>/exhibits/**          what represent, tag, leaks and card wrote there
beside a drop list           what tag and leaks found when they wrote the list that the study's runs leave out
<study>/runs/*/exhibits/     heat maps that callbacks drew, of the runs of the first seed
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftlab.report.evidence import Evidence
from sftlab.report.exhibit import Exhibit, Picture, Table, files_in
from sftlab.report.section import Section
from sftlab.yaml_files import read_yaml

FOLDER = "exhibits"  # where tools and callbacks put exhibits, in a study or a run


def exhibit_sections(evidence: Evidence) -> list[Section]:
    """Return a section for each exhibit, one for the heat maps of the runs, one for other pictures.

    What cannot be shown is named as missing: after days of training a report must not fail for a lost picture.
    """
    folder = evidence.folder / FOLDER
    broken: list[str] = []
    found = _read(files_in(folder, deep=True), broken)
    drops = _drop_folders(evidence)
    found |= _read([path for other in drops for path in files_in(other)], broken)
    sections = []
    for path, exhibit in found.items():
        name = f"{FOLDER}-{path.parent.name}-{path.name.split('.')[0]}"
        section = _section(exhibit, name)
        if (path.parent / "drop.jsonl").is_file() and path.parent not in drops:
            section.lead = "It has a drop list, but no run of this study uses that list."
        sections.append(section)
    drawn = Section("runs", "Inside the runs", lead="Drawn by callbacks, of the runs of the first seed.")
    drawn.parts += list(_drawn(evidence, broken))
    shown = {part.path.resolve() for exhibit in found.values() for part in exhibit.parts if isinstance(part, Picture)}
    others = Section("pictures", "Pictures", missing=broken)
    others.parts += [
        Picture(path, path.stem, "") for path in files_in(folder, ".png", deep=True) if path.resolve() not in shown
    ]
    return [*sections, *(section for section in (drawn, others) if section.parts or section.missing)]


def _read(paths: Iterable[Path], broken: list[str]) -> dict[Path, Exhibit]:
    """Read the exhibits by path, each once; problems with others go to ``broken``."""
    found = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            found[path] = Exhibit.read(path)
        except ValueError as error:
            broken.append(str(error))
    return found


def _section(exhibit: Exhibit, name: str) -> Section:
    parts = [replace(part, name=f"{name}-{part.name}") if isinstance(part, Table) else part for part in exhibit.parts]
    return Section(name, exhibit.title, findings=list(exhibit.findings), parts=[*parts], page=exhibit.page)


def _drop_folders(evidence: Evidence) -> list[Path]:
    """Return the existing folders of the drop lists in the runs' configs, relative to the working folder."""
    configs = [evidence.folder / "configs" / f"{run}.yaml" for run in evidence.runs]
    lists = [path for c in configs if c.is_file() for path in _lists_in(read_yaml(c, "a run's config"))]
    return [folder for folder in dict.fromkeys(path.resolve().parent for path in lists) if folder.is_dir()]


def _lists_in(node: Any) -> Iterator[Path]:
    """Return the values of all keys ``drop`` in a config."""
    if isinstance(node, list):
        for item in node:
            yield from _lists_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "drop" and isinstance(value, str):
                yield Path(value)
            yield from _lists_in(value)


def _drawn(evidence: Evidence, broken: list[str]) -> Iterator[Picture]:
    for cost in evidence.costs:
        if cost.seed == evidence.seeds[0]:
            paths = files_in(evidence.folder / "runs" / cost.run / FOLDER)
            for exhibit in _read(paths, broken).values():
                for part in exhibit.parts:
                    if isinstance(part, Picture):
                        yield replace(part, title=f"{cost.run}: {part.title}")
