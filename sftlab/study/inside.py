"""Sections of what other tools and callbacks found about a study: maps, tags, leaks, cards, heat maps of its runs.

<study>/inside/**            what represent, tag, leaks and card were told to write there
beside a drop list           what tag and leaks found when they wrote the list that the study's runs leave out
<study>/runs/*/inside/       heat maps that callbacks drew, of the runs of the first seed
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftlab.exhibit import Exhibit, Picture, Table, exhibits_in
from sftlab.study.evidence import Evidence
from sftlab.study.section import Section


def inside(evidence: Evidence) -> list[Section]:
    """A section for each exhibit, and one for the heat maps of all runs.

    Raises:
        ValueError: An exhibit is malformed, or what it shows is missing.
    """
    found = exhibits_in(evidence.folder / "inside", deep=True)
    for folder in _drop_folders(evidence):
        found |= exhibits_in(folder)
    names: Counter[str] = Counter()
    sections = []
    for path, exhibit in found.items():
        name = "inside-" + re.sub(r"[^a-z0-9]+", "-", f"{path.parent.name} {path.name.split('.')[0]}".lower())
        names[name] += 1
        sections.append(_section(exhibit, f"{name}-{names[name]}" if names[name] > 1 else name))
    drawn = Section("inside-runs", "Inside the runs", "Drawn by callbacks, of the runs of the first seed.")
    drawn.parts += list(_drawn(evidence))
    return [*sections, drawn] if drawn.parts else sections


def _section(exhibit: Exhibit, name: str) -> Section:
    parts = [replace(part, name=f"{name}-{part.name}") if isinstance(part, Table) else part for part in exhibit.parts]
    return Section(name, exhibit.title, findings=list(exhibit.findings), parts=[*parts], page=exhibit.page)


def _drop_folders(evidence: Evidence) -> list[Path]:
    """Folders of the drop lists that configs of the study name, each once, where they are still there."""
    import yaml

    configs = sorted((evidence.folder / "configs").glob("*.yaml"))
    lists = [path for config in configs for path in _lists_in(yaml.safe_load(config.read_text("utf-8")))]
    return [folder for folder in dict.fromkeys(path.parent for path in lists) if folder.is_dir()]


def _lists_in(node: Any) -> Iterator[Path]:
    """The values of all keys ``drop`` in a config."""
    if isinstance(node, list):
        for item in node:
            yield from _lists_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "drop" and isinstance(value, str):
                yield Path(value)
            yield from _lists_in(value)


def _drawn(evidence: Evidence) -> Iterator[Picture]:
    for cost in evidence.costs:
        if cost.seed == evidence.seeds[0]:
            for exhibit in exhibits_in(evidence.folder / "runs" / cost.run / "inside").values():
                for part in exhibit.parts:
                    if isinstance(part, Picture):
                        yield replace(part, title=f"{cost.run}: {part.title}")
