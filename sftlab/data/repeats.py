"""Repeats: counts how often each name came before, for many millions of names in about 20 bytes each.

recent    a set of the newest names
runs      older ones as sorted arrays of bytes, each about half as long as the one before it
counts    how often names came that came more than once
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RECENT = 1 << 15  # names held as Python objects of 100 bytes each


class Repeats:
    """Counts names chunk by chunk; names must have equal length, or differ within the shorter one."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[np.ndarray] = []
        self._counts: dict[bytes, int] = {}

    def count(self, names: Sequence[bytes]) -> list[int]:
        """Return for each name how often it has come so far, 1 for the first time."""
        older, found = self._older(names), []
        for name in names:
            times = self._counts.get(name, int(name in older or name in self._recent)) + 1
            if times == 1:
                self._recent.add(name)
            else:
                self._counts[name] = times
            found.append(times)
        if len(self._recent) >= _RECENT:
            self._settle()
        return found

    def _older(self, names: Sequence[bytes]) -> set[bytes]:
        """Return the names that are in a run."""
        asked_M, found = np.array(names, dtype=bytes), set[bytes]()
        for run in self._runs if len(asked_M) else ():
            place_M = np.minimum(np.searchsorted(run, asked_M), len(run) - 1)
            found.update(names[place] for place in np.flatnonzero(run[place_M] == asked_M).tolist())
        return found

    def _settle(self) -> None:
        """Make a run of the newest names, merged with all runs that are not longer."""
        run = np.sort(np.array(list(self._recent), dtype=bytes))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        self._runs.append(run)
