"""Words as overlap is measured in: runs of letters and digits, lower case; punctuation, white space and ``_`` go."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text in their order."""
    return _WORD.findall(text.lower())
