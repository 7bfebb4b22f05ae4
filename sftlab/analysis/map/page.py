"""The map as one self-contained page: a point shows its text when hovered or tapped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from sftlab.analysis.map.figure import Panel, panel_note
from sftlab.analysis.map.queries import Query
from sftlab.report.page import render
from sftlab.report.style import variable
from sftlab.screen import visible

_SHOWN = 1500  # characters of a query


def map_page(title: str, caption: str, queries: Sequence[Query], panels: Mapping[str, Sequence[Panel]]) -> str:
    """Return the page as text.

    Args:
        title: Its heading.
        caption: What is drawn, in a sentence or two.
        queries: The queries in the order of the maps' rows; texts are data, never markup.
        panels: For each method the panels, one per checkpoint.
    """
    names = list(dict.fromkeys(query.ability for query in queries))
    first, *_ = panels.values()
    data = {
        "methods": list(panels),
        "abilities": [{"name": name, "colour": variable(position)} for position, name in enumerate(names)],
        "queries": [{"ability": names.index(query.ability), "text": _shown(query.text)} for query in queries],
        "panels": [
            {
                "label": panel.label,
                "note": f"layer {panel.layer} of {panel.num_blocks}; {panel_note(panel)}",
                "maps": {method: _map(of_method[position]) for method, of_method in panels.items()},
            }
            for position, panel in enumerate(first)
        ],
    }
    # "<" is written as an escape, so that no text can end the script element.
    text = Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))
    about = {"title": title, "caption": caption, "data": text}
    return render("map.html", "sftlab.analysis.map", "map.js", **about)


def _map(panel: Panel) -> dict[str, object]:
    """Scale coordinates to a square of 100 by 100, keeping proportions, y downwards as in SVG."""
    map_N2 = panel.projection.map_N2
    low_2, high_2 = map_N2.min(0), map_N2.max(0)
    scale = 92 / max(float((high_2 - low_2).max()), 1e-12)
    points_N2 = 50 + (map_N2 - (low_2 + high_2) / 2) * scale * [1, -1]
    return {"note": panel.projection.note, "points": points_N2.round(2).tolist()}


def _shown(text: str) -> str:
    return visible(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text):,} characters)")
