"""The valid name that is nearest to a misspelt one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6  # similarity, from 0 to 1, from which a name counts as near


def nearest(wrong: str, known: Iterable[str], cutoff: float = _CUTOFF) -> str | None:
    """The known name that is most similar to ``wrong``; None where none is near."""
    return next(iter(difflib.get_close_matches(wrong, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(wrong: str, known: Iterable[str], otherwise: str = "", cutoff: float = _CUTOFF) -> str:
    """A hint such as ``did you mean math?``.

    Args:
        wrong: What was given.
        known: The valid names.
        otherwise: What is said where no valid name is near.
        cutoff: Similarity from which a name counts as near, between 0 (any name) and 1 (only the same one).
    """
    near = nearest(wrong, known, cutoff)
    return otherwise if near is None else f"did you mean {near}?"
