"""Words for measuring overlap: runs of letters and digits, in lower case, without punctuation and ``_``."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in their order."""
    return _WORD.findall(text.lower())
