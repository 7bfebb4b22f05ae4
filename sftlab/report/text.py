"""How numbers, names and texts are written: for people, in file names, in CSV and in Markdown."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from sftlab.stats.interval import Estimate

_LONGEST_SLUG = 80
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")
_LONG_DECIMAL = re.compile(r"(?<![\d.])\d+\.\d{4,}(?![\d.eE])")


def slug(text: str) -> str:
    """Turn a text into a name of files and anchors: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_SLUG].strip("-") or "unnamed"


def shortened(text: str, most: int = 48) -> str:
    """Shorten a text to at most this many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def apart(texts: Sequence[str], most: int = 48) -> list[str]:
    """Shorten texts of one figure so that two different ones never look the same.

    Long texts first have decimals rounded to three digits, then their ends cut, and if that makes two look the same,
    their middles; a text that would still look like another stays whole.
    """
    if all(len(text) <= most for text in texts):
        return list(texts)
    rounded = [_LONG_DECIMAL.sub(lambda found: f"{float(found[0]):.3g}", text) for text in texts]
    whole = rounded if len(set(rounded)) == len(set(texts)) else list(texts)
    shown = [shortened(text, most) for text in whole]
    for way in (_without_middle, lambda text, most: text):
        differing = Counter(text for text, _ in set(zip(shown, whole, strict=True)))
        shown = [way(full, most) if differing[text] > 1 else text for text, full in zip(shown, whole, strict=True)]
    return shown


def _without_middle(text: str, most: int) -> str:
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}\u2026{text[len(text) - (most - head - 1) :]}"


def some_of(names: Sequence[str], most: int = 8, between: str = ", ") -> str:
    """Return the first of many names, and how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def csv_text(text: str) -> str:
    """Format a text for a CSV cell: what a spreadsheet would take for a formula gets a quote before it."""
    if text == "-":  # how tables show an empty value
        return ""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def markdown_text(text: str) -> str:
    """Format a text for a cell of a Markdown table: marks, tags and links are shown literally."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())


def number(value: float, best: float | None, signed: bool = False) -> str:
    """Format a score: percent if 1 is the best, otherwise two decimals (losses three)."""
    if math.isnan(value):
        return "-"
    sign, digits = "+" if signed else "", 1 if best == 1 else 3 if best is None else 2
    shown = round(100 * value if best == 1 else value, digits) + 0.0  # no minus before a zero
    return f"{shown:{sign}.{digits}f}" + ((" pts" if signed else "%") if best == 1 else "")


def with_interval(value: float, low: float, high: float, best: float | None, signed: bool = False) -> str:
    """Format a score and its interval; the interval is left out if there is none."""
    if math.isnan(low) or math.isnan(value):
        return number(value, best, signed)
    return f"{number(value, best, signed)} ({interval_text(low, high, best, signed)})"


def interval_text(low: float, high: float, best: float | None, signed: bool = False) -> str:
    """Format the ends of an interval of a score, in the unit of ``number``."""
    scale, digits = (100, 1) if best == 1 else (1, 3 if best is None else 2)
    low_text, high_text = (f"{scale * end:{'+' if signed else ''}.{digits}f}" for end in (low, high))
    return f"{low_text} to {high_text}"


def estimate_text(estimate: Estimate, digits: int = 2, scale: float = 1, signed: bool = False) -> str:
    """Format an estimate and its interval."""
    if math.isnan(estimate.value):
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    ends = "" if math.isnan(estimate.low) else f" ({scale * estimate.low:{form}} to {scale * estimate.high:{form}})"
    return f"{scale * estimate.value:{form}}{ends}"


def p_text(p: float) -> str:
    """Format a p value."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Format a time as hours and minutes, or in smaller units if it is short."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def short_count(value: float) -> str:
    """Format a count for an axis: 2.5M."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:g}"
