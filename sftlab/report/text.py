"""How names and texts from data are written where they could do harm: file names, CSV, Markdown."""

from __future__ import annotations

import re

_LONGEST_SLUG = 80
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")


def slug(text: str) -> str:
    """A text as a name of files and anchors: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST_SLUG].strip("-") or "unnamed"


def csv_text(text: str) -> str:
    """A text for a CSV cell: what a spreadsheet would take for a formula gets a quote before it, numbers do not."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def markdown_text(text: str) -> str:
    """A text for a cell of a Markdown table: marks, tags and links are shown as they stand."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())
