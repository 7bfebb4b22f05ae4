"""The files of a map: pictures, page and points of some checkpoints' hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sftlab.analysis.map_figure import Panel, abilities_figure, layers_figure, map_figure, save_figure
from sftlab.analysis.map_page import map_page
from sftlab.analysis.projection import Projection, methods, project
from sftlab.analysis.queries import Query
from sftlab.analysis.representation import POOLINGS, HiddenStates
from sftlab.analysis.separation import Separation

Projections = dict[str, dict[str, Projection]]  # by method, then by checkpoint


def project_all(states: Mapping[str, HiddenStates], drawn: Mapping[str, int], seed: int) -> Projections:
    """Every method's map of each checkpoint's drawn layer.

    Raises:
        ValueError: A layer has the same state for all queries.
    """
    return {
        method: {label: project(of_one.layer(drawn[label]), method, seed) for label, of_one in states.items()}
        for method in methods()
    }


def write_atlas(
    folder: Path,
    queries: Sequence[Query],
    projections: Projections,
    measured: Mapping[str, Sequence[Separation]],
    drawn: Mapping[str, int],
    pooling: str,
) -> None:
    """Write maps, figures by layer, map.html and points.jsonl."""
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
    for method, of_method in panels.items():
        figure = map_figure(of_method, abilities_N)
        name = f"map_{method.lower().replace('-', '')}"
        save_figure(figure, folder, name, f"Hidden states of the abilities' queries, {method}", caption)
    at_0 = " At depth 0 the last token of every prompt is the same." if pooling == "last" else ""
    by_layer = f"First user turns as prompts, {count}; {POOLINGS[pooling]}. {_IN_WORDS}{at_0}"
    save_figure(layers_figure(measured), folder, "separation", "Separation of abilities by layer", by_layer)
    title = "Separation of each ability by layer"
    save_figure(abilities_figure(measured), folder, "separation_abilities", title, by_layer)
    page = map_page("Hidden states of the abilities' queries", caption, queries, panels)
    (folder / "map.html").write_text(page, encoding="utf-8", errors="replace")
    (folder / "points.jsonl").write_text("".join(_point_lines(queries, projections)), encoding="utf-8")


_IN_WORDS = (
    "Silhouette: 1 apart, 0 mixed. Probe: accuracy of a linear classifier on held-out queries. Both are of the hidden "
    "states, not of the drawing."
)


def _point_lines(queries: Sequence[Query], projections: Projections) -> list[str]:
    lines = []
    for row, query in enumerate(queries):
        maps = {
            method: {label: projection.map_N2[row].tolist() for label, projection in by_label.items()}
            for method, by_label in projections.items()
        }
        lines.append(json.dumps({**query._asdict(), "maps": maps}) + "\n")
    return lines
