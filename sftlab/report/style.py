"""One style for everything that shows results: report, map, card, heat maps of callbacks; light, dark and in grey.

Colours are those of Okabe and Ito 2008 for readers who see colours differently; every colour comes with a marker and a
line style of its own, so that a figure can be read in grey. A page holds each colour as a CSS variable with a value for
a dark screen; pictures have the light ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

INK, MUTED, GRID, BACK = "#1f2328", "#5b6570", "#d5dae0", "#ffffff"
_GROUND = {  # CSS variable: light, dark
    "--ink": (INK, "#e3e6ea"),
    "--muted": (MUTED, "#9aa4af"),
    "--grid": (GRID, "#3a424b"),
    "--back": (BACK, "#14171b"),
    "--soft": ("#f5f7f9", "#1d2228"),
    "--link": ("#0b62a8", "#7cbcf2"),
    "--warn": ("#b35900", "#f0b429"),
    "--trained": ("#d9f2df", "#1d4a2c"),
}
SANS = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", "Noto Sans", Arial, sans-serif'
)


class Look(NamedTuple):
    """How one of several things is drawn everywhere: colour, colour on a dark screen, marker and dashes."""

    colour: str
    dark: str
    marker: str
    dashes: Any


LOOKS = (
    Look("#0072b2", "#4fa8ea", "o", "solid"),
    Look("#d55e00", "#f2803c", "s", (0, (5, 1.6))),
    Look("#009e73", "#1fc79a", "^", (0, (1.4, 1.4))),
    Look("#cc79a7", "#e29cc3", "D", (0, (5, 1.5, 1.2, 1.5))),
    Look("#e69f00", "#f0b429", "v", (0, (7, 2))),
    Look("#56b4e9", "#86cdf6", "P", (0, (3, 1.2, 1, 1.2, 1, 1.2))),
    Look("#7f7f7f", "#a6adb5", "X", (0, (1, 2.4))),
    Look("#8a63b8", "#b795e0", "*", (0, (4, 1, 1, 1, 1, 1, 1, 1))),
)
SCORES, AMOUNTS, SIGNED = "cividis", "Blues", "RdBu"
"""Colour maps: shares of the best score, amounts from 0, and changes both ways."""

_RC: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,  # a dollar sign in a name is not math
    "svg.fonttype": "none",
    "svg.hashsalt": "sftlab",  # the same figure gives the same file
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def look(position: int) -> Look:
    """Return the look for this position of a list; looks repeat after the last one."""
    return LOOKS[position % len(LOOKS)]


def variable(position: int) -> str:
    """Return its colour as a CSS value."""
    return f"var(--look-{position % len(LOOKS)})"


def css_variables() -> str:
    """Return every colour as a CSS variable, for light and dark screens."""
    names = {**_GROUND, **{f"--look-{i}": (one.colour, one.dark) for i, one in enumerate(LOOKS)}}
    light, dark = ("; ".join(f"{name}: {pair[i]}" for name, pair in names.items()) for i in (0, 1))
    return (
        f":root {{ color-scheme: light dark; {light}; --sans: {SANS} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def page_colours() -> dict[str, str]:
    """Map the colours of a picture to those of a page."""
    ground = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
    return {**ground, **{one.colour: variable(i) for i, one in enumerate(LOOKS)}}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style to everything drawn and saved inside.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'sftlab[studies]'")
    import matplotlib

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # a label as wide as the figure
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names may be in any script
        yield
