"""The map as one page that needs nothing else: a point shows its text when it is pointed at or tapped."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

from sftlab.analysis.map.figure import Panel, colour_of, panel_note
from sftlab.analysis.map.queries import Query

_SHOWN = 1500  # characters of a query

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --line: #8885; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1400px; padding: 0 1rem; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; }
p { margin: 0 0 .8rem; max-width: 75ch; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1rem; margin: .8rem 0; }
button { font: inherit; padding: .2rem .7rem; border: 1px solid var(--line); border-radius: .4rem; background: none;
 color: inherit; cursor: pointer; }
button[aria-pressed=true] { background: #8883; font-weight: 600; }
nav span { display: flex; flex-wrap: wrap; gap: .4rem; }
#legend button[aria-pressed=false] { opacity: .4; font-weight: 400; }
#legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
#panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; }
svg { width: 100%; aspect-ratio: 1; border: 1px solid var(--line); border-radius: .4rem; display: block; }
circle { fill-opacity: .75; cursor: pointer; }
circle.on { stroke: currentColor; stroke-width: .5; fill-opacity: 1; }
#text { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; margin-top: 1rem; min-height: 3.2rem;
 max-height: 40vh; overflow: auto; position: sticky; bottom: 0; background: Canvas;
 white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<p>@CAPTION@</p>
<nav><span id="methods"></span><span id="legend"></span></nav>
<div id="panels"></div>
<div id="text" aria-live="polite">Point at a query, or tap it: its text stands here and it is marked in every panel.
</div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (name, parent, attributes = {}, space = "http://www.w3.org/1999/xhtml") => {
  const node = parent.appendChild(document.createElementNS(space, name));
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  return node;
};
const SVG = "http://www.w3.org/2000/svg", hidden = new Set();
const nearest = (svg, event) => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let best = null, least = 16;
  for (const dot of svg.children) {
    const far = (dot.getAttribute("cx") - at.x) ** 2 + (dot.getAttribute("cy") - at.y) ** 2;
    if (far < least && dot.style.display !== "none") { best = dot; least = far; }
  }
  return best;
};
const show = number => {
  document.querySelectorAll("circle.on").forEach(dot => dot.classList.remove("on"));
  document.querySelectorAll(`circle[data-n="${number}"]`).forEach(dot => {
    dot.classList.add("on");
    dot.parentNode.append(dot);
  });
  const query = data.queries[number];
  document.getElementById("text").textContent = data.abilities[query.ability].name + "\\n" + query.text;
};
const draw = method => {
  document.getElementById("panels").replaceChildren();
  document.querySelectorAll("#methods button").forEach(
    button => button.setAttribute("aria-pressed", button.textContent === method));
  for (const panel of data.panels) {
    const figure = make("figure", document.getElementById("panels"));
    const name = make("strong", figure);
    name.textContent = panel.label;
    const svg = make("svg", figure, {viewBox: "0 0 100 100", role: "img", "aria-label": panel.label}, SVG);
    make("figcaption", figure).textContent = panel.note + "; " + method + ": " + panel.maps[method].note;
    panel.maps[method].points.forEach(([x, y], n) => {
      const ability = data.queries[n].ability;
      const dot = make("circle", svg, {cx: x, cy: y, r: 0.9, fill: data.abilities[ability].colour, "data-n": n}, SVG);
      if (hidden.has(ability)) dot.style.display = "none";
    });
    for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, event => {
      const dot = nearest(svg, event);
      if (dot) show(dot.dataset.n);
    });
  }
};
data.methods.forEach(method => {
  const button = make("button", document.getElementById("methods"));
  button.textContent = method;
  button.addEventListener("click", () => draw(method));
});
data.abilities.forEach((ability, number) => {
  const button = make("button", document.getElementById("legend"), {"aria-pressed": true});
  make("i", button).style.background = ability.colour;
  button.append(ability.name);
  button.addEventListener("click", () => {
    hidden.has(number) ? hidden.delete(number) : hidden.add(number);
    button.setAttribute("aria-pressed", !hidden.has(number));
    draw(document.querySelector("#methods [aria-pressed=true]").textContent);
  });
});
draw(data.methods[0]);
</script>
</body>
</html>
"""


def map_page(title: str, caption: str, queries: Sequence[Query], panels: Mapping[str, Sequence[Panel]]) -> str:
    """The page as text.

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
        "abilities": [{"name": name, "colour": colour_of(position)} for position, name in enumerate(names)],
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
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = _PAGE.replace("@TITLE@", html.escape(title)).replace("@CAPTION@", html.escape(caption))
    return page.replace("@DATA@", text)


def _map(panel: Panel) -> dict[str, object]:
    """Coordinates in a square of 100 by 100 that keeps proportions, y downwards as in SVG."""
    map_N2 = panel.projection.map_N2
    low_2, high_2 = map_N2.min(0), map_N2.max(0)
    scale = 92 / max(float((high_2 - low_2).max()), 1e-12)
    points_N2 = 50 + (map_N2 - (low_2 + high_2) / 2) * scale * [1, -1]
    return {"note": panel.projection.note, "points": points_N2.round(2).tolist()}


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text):,} characters)"
