"""The files of a map: pictures, page and points of some checkpoints' hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftlab.analysis.map.figure import Panel, abilities_figure, layers_figure, map_figure, save_figure
from sftlab.analysis.map.page import map_page
from sftlab.analysis.map.projection import Projection, methods, project
from sftlab.analysis.map.queries import Query
from sftlab.analysis.map.representation import POOLINGS, HiddenStates
from sftlab.analysis.map.separation import Separation
from sftlab.report.exhibit import Exhibit, Picture, Table
from sftlab.report.style import style

Projections = dict[str, dict[str, Projection]]  # by method, then by checkpoint
_TITLE = "Hidden states of the abilities' queries"
_IN_WORDS = (
    "Silhouette: 1 apart, 0 mixed. Probe: accuracy of a linear classifier on held-out queries. Both are of the hidden "
    "states, not of the drawing."
)


def project_all(states: Mapping[str, HiddenStates], drawn: Mapping[str, int], seed: int) -> Projections:
    """Compute every method's map of each checkpoint's drawn layer.

    Raises:
        ValueError: A layer has the same state for all queries.
    """
    return {
        method: {label: project(of_one.layer(drawn[label]), method, seed) for label, of_one in states.items()}
        for method in methods()
    }


@style()
def write_atlas(
    folder: Path,
    queries: Sequence[Query],
    projections: Projections,
    measured: Mapping[str, Sequence[Separation]],
    drawn: Mapping[str, int],
    pooling: str,
) -> None:
    """Write maps, figures by layer, map.html, points.jsonl and an exhibit of them."""
    abilities_N = [query.ability for query in queries]
    panels = {
        method: [
            Panel(label, drawn[label], len(layers) - 1, maps[label], layers[drawn[label]])
            for label, layers in measured.items()
        ]
        for method, maps in projections.items()
    }
    count = f"{len(queries) // len(set(abilities_N))} queries of each ability"
    where = ", ".join(f"layer {drawn[label]} of {len(layers) - 1} in {label}" for label, layers in measured.items())
    caption = f"First user turns as prompts, {count}; {POOLINGS[pooling]}; {where}. {_IN_WORDS}"
    parts: list[Table | Picture] = []
    for method, of_method in panels.items():
        figure = map_figure(of_method, abilities_N)
        name = f"map_{method.lower().replace('-', '')}"
        parts.append(save_figure(figure, folder, name, f"{_TITLE}, {method}", caption))
    at_0 = " At depth 0 the last token of every prompt is the same." if pooling == "last" else ""
    by_layer = f"First user turns as prompts, {count}; {POOLINGS[pooling]}. {_IN_WORDS}{at_0}"
    title = "Separation of abilities by layer"
    parts.append(save_figure(layers_figure(measured), folder, "separation", title, by_layer))
    title = "Separation of each ability by layer"
    parts.append(save_figure(abilities_figure(measured), folder, "separation_abilities", title, by_layer))
    parts.append(_table(measured))
    page = folder / "map.html"
    page.write_text(map_page(_TITLE, caption, queries, panels), encoding="utf-8", errors="replace")
    (folder / "points.jsonl").write_text("".join(_point_lines(queries, projections)), encoding="utf-8")
    drawn_layers = [layers[drawn[label]] for label, layers in measured.items()]
    findings = [
        f"{s.checkpoint}, layer {s.layer}: silhouette {s.silhouette:.2f}, a probe names the ability of "
        f"{s.probe_accuracy:.0%} of the queries"
        for s in drawn_layers
    ]
    Exhibit(_TITLE, [f"{'; '.join(findings)}."], parts, page).write(folder, "map")


def _table(measured: Mapping[str, Sequence[Separation]]) -> Table:
    """Return a table of every layer of every checkpoint."""
    first = next(iter(measured))
    rows: list[dict[str, Any]] = [
        {"checkpoint": label, "layer": s.layer, "silhouette": s.silhouette}
        | {f"silhouette of {name}": value for name, value in s.silhouette_by_ability.items()}
        | {"probe accuracy": s.probe_accuracy, f"CKA with {first}": s.cka[first]["cka"] if label != first else None}
        for label, layers in measured.items()
        for s in layers
    ]
    shown = [list(map(_cell, row.values())) for row in rows]
    return Table("separation", "Separation by layer", list(rows[0]), shown, numbers=rows, folded=True)


def _point_lines(queries: Sequence[Query], projections: Projections) -> list[str]:
    lines = []
    for row, query in enumerate(queries):
        maps = {
            method: {label: projection.map_N2[row].tolist() for label, projection in by_label.items()}
            for method, by_label in projections.items()
        }
        lines.append(json.dumps({**query._asdict(), "maps": maps}) + "\n")
    return lines


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
