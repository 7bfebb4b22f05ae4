"""Finds the valid name nearest to a misspelt one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6  # similarity, from 0 to 1, above which a name counts as near


def nearest(wrong: str, known: Iterable[str], cutoff: float = _CUTOFF) -> str | None:
    """Return the known name most similar to ``wrong``, or that it abbreviates (lr); None if none is near."""
    names = list(known)
    initials = [
        name for name in names if len(wrong) > 1 and wrong.lower() == "".join(w[0] for w in name.split("_") if w)
    ]
    if len(initials) == 1:
        return initials[0]
    return next(iter(difflib.get_close_matches(wrong, names, n=1, cutoff=cutoff)), None)


def did_you_mean(wrong: str, known: Iterable[str], otherwise: str = "", cutoff: float = _CUTOFF) -> str:
    """Return a hint such as ``did you mean math?``.

    Args:
        wrong: The given name.
        known: The valid names.
        otherwise: The hint if no valid name is near.
        cutoff: Similarity above which a name counts as near, between 0 (any name) and 1 (only the same one).
    """
    near = nearest(wrong, known, cutoff)
    return otherwise if near is None else f"did you mean {near}?"
