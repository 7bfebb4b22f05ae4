"""Examples: token ids and masks of conversations in an Arrow file that is mapped into memory."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from sftlab.data.conversation import Audit


class Examples:
    """The examples of one source, mapped from disk.

    Attributes:
        uids: Content hash of each example; pieces of a split end in ``/n``, equal ones in ``#n``.
        groups: What must stay together in a split, by example.
        lengths_N: Tokens of each example.
        supervised_N: Supervised tokens of each example.
        audit: What happened to the records on the way.
        fingerprint: Name of the cache entry: equal names, equal examples.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        table = pa.ipc.open_file(pa.memory_map(str(folder / "examples.arrow"))).read_all()
        self.uids: list[str] = table["uid"].to_pylist()
        self.groups: list[str] = table["group"].to_pylist()
        self.lengths_N, self.supervised_N = (
            np.concatenate([np.zeros(0, np.int32), *map(_ints, table[name].chunks)])
            for name in ("length", "supervised")
        )
        self._ids, self._runs = _lists(table["ids"]), _lists(table["runs"])
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table["ids"].chunks)]).tolist()
        self.audit = Audit(**json.loads((folder / "audit.json").read_text(encoding="utf-8")))
        self.fingerprint = folder.name

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.uids)

    def ids(self, index: int) -> np.ndarray:
        """Token ids [L] of one example."""
        return self._item(self._ids, index)

    def mask(self, index: int) -> np.ndarray:
        """Which tokens [L] of one example are supervised."""
        runs = self._item(self._runs, index)
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs)

    def _item(self, lists: list[tuple[np.ndarray, np.ndarray]], index: int) -> np.ndarray:
        chunk = bisect_right(self._starts, index) - 1
        values, offsets = lists[chunk]
        row = index - self._starts[chunk]
        return values[offsets[row] : offsets[row + 1]]


def _ints(array: Any) -> np.ndarray:
    """An Arrow array of int32, not copied; ``to_numpy`` would import pandas, which takes longer than a small file."""
    return np.frombuffer(array.buffers()[1], np.int32, len(array), offset=4 * array.offset)


def _lists(column: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(_ints(chunk.values), _ints(chunk.offsets)) for chunk in column.chunks]
