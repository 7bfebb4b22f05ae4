"""A figure as files, and as an SVG to embed in a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftlab.files import whole_file
from sftlab.report.spots import Spot, overlay
from sftlab.report.style import BACK, page_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, folder: Path, name: str, spots: Sequence[Spot] = ()) -> str:
    """Write <name>.png and <name>.svg; return the SVG for a page, without addresses and in the page's colours."""
    for ending in ("png", "svg"):
        metadata = {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
        with whole_file(folder / f"{name}.{ending}") as partial:
            figure.savefig(partial, format=ending, dpi=160, facecolor=BACK, metadata=metadata)
    svg = for_page((folder / f"{name}.svg").read_text(encoding="utf-8"), name)
    return svg.replace("</svg>", f"{overlay(figure, spots)}</svg>")


def for_page(svg: str, name: str) -> str:
    """Prepare an SVG for a page: unique ids, the page's colours, no name spaces or metadata.

    Only tags are changed: what stands between them is text from data.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag[0], name), svg)


def _tag_for_page(tag: str, name: str) -> str:
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag).replace("xlink:href", "href")
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", tag)
    tag = tag.replace(f"fill: {BACK}", "fill: none").replace(f"stroke: {BACK}", "stroke: var(--back)")
    for colour, variable in page_colours().items():
        tag = tag.replace(colour, variable)
    return tag
