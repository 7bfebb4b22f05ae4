"""Examples: token ids and masks of conversations in an Arrow file that is mapped into memory.

    examples.arrow    uid, group, length, supervised, ids, runs, content: one row an example
    audit.json        what happened to the records on the way, and the hash of examples.arrow

A cache entry whose file does not match the hash is damaged and is never read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftlab.data.conversation import Audit
from sftlab.fingerprint import table_hash
from sftlab.plan.uids import Uids, digest_order

if TYPE_CHECKING:
    from sftlab.data.encoder import Encoded

TABLE, AUDIT = "examples.arrow", "audit.json"
_MOST_ROWS, _MOST_TOKENS = 4096, 1 << 20  # of a record batch: many small batches open slowly, large ones take memory
_HASHED_AT_ONCE = 1 << 18  # rows
CONTENT_BYTES = 16
Row = tuple[str, str, "Encoded"]  # uid, group, ids and runs


class DamagedEntry(ValueError):
    """A folder of the cache whose content is not what was written."""


class Examples:
    """The examples of one source, mapped from disk.

    Attributes:
        uids: Content hash of each conversation; pieces of a split end in ``/n``, equal ones in ``#n``.
        groups: The group of each example; a split keeps groups together.
        lengths_N: Tokens of each example.
        supervised_N: Supervised tokens of each example.
        audit: What happened to the records on the way.
        written: Hash of the file that holds them.
        folder: Its place in the cache.

    Raises:
        DamagedEntry: The folder does not hold what was written there.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        audit, self.written = _checked_audit(folder)
        table = pa.ipc.open_file(pa.memory_map(str(folder / TABLE))).read_all()
        self.uids = _uids(folder / TABLE, len(table))
        self.groups: Sequence[str] = _Texts(table["group"])
        self.lengths_N, self.supervised_N = (
            _column(folder / TABLE, name, np.empty(len(table), np.int32)) for name in ("length", "supervised")
        )
        self._ids, self._runs = _lists(table["ids"]), _lists(table["runs"])
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table["ids"].chunks)]).tolist()
        self.audit, self.folder = Audit(**audit), folder

    @functools.cached_property
    def content_NB(self) -> np.ndarray:
        """Hash of each example's uid, token ids and mask, 16 bytes: equal hashes train the same."""
        return _column(self.folder / TABLE, "content", np.empty((len(self), CONTENT_BYTES), np.uint8))

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

    @property
    def largest_id(self) -> int:
        """Return the largest token id of all examples; -1 if there are none."""
        return max((int(values.max()) for values, _ in self._ids if len(values)), default=-1)

    def content_hash(self, index_M: Sequence[int] | np.ndarray | None = None) -> str:
        """Hash some examples (all by default), each once, independent of their order."""
        is_all = index_M is None or len(index_M) == len(self)
        index_M = None if is_all else np.asarray(index_M, dtype=getattr(index_M, "dtype", np.int64))
        digest = hashlib.blake2b(digest_size=16)
        order_M = digest_order(self.content_NB, index_M)
        for start in range(0, len(order_M), _HASHED_AT_ONCE):
            chunk = order_M[start : start + _HASHED_AT_ONCE]
            digest.update(self.content_NB[chunk if index_M is None else index_M[chunk]])
        return digest.hexdigest()

    def _item(self, lists: list[tuple[np.ndarray, np.ndarray]], index: int) -> np.ndarray:
        chunk = bisect_right(self._starts, index) - 1
        values, offsets = lists[chunk]
        row = index - self._starts[chunk]
        return values[offsets[row] : offsets[row + 1]]


class _Texts(Sequence[str]):
    """A column of texts, few of which are in memory at a time."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        found = self._column[index]
        return found.to_pylist() if isinstance(index, slice) else found.as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _columns(path: Path, name: str) -> Iterator[Any]:
    """Yield a column batch by batch, to be copied; read, not mapped, since mapped pages would stay in memory."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        place = pa.ipc.open_file(file).schema.get_field_index(name)
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[place]))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _column(path: Path, name: str, found: np.ndarray) -> np.ndarray:
    """Return a column of numbers, or of fixed-size bytes, copied into ``found``."""
    start = 0
    for batch in _columns(path, name):
        if not (size := len(batch)):
            continue
        values = np.frombuffer(batch[name].buffers()[1], found.dtype, size * found[:1].size)
        found[start : start + size] = values.reshape(size, *found.shape[1:])
        start += size
    return found


def _uids(path: Path, count: int) -> Uids:
    """Return the uids of a table as bytes."""
    names_NB, start = np.zeros((count, 1), dtype=np.uint8), 0
    for batch in _columns(path, "uid"):
        column = batch["uid"]
        starts = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, offset=4 * column.offset)
        widths_N = np.diff(starts)
        if (width := int(widths_N.max(initial=1))) > names_NB.shape[1]:
            wider_NB = np.zeros((count, width), dtype=np.uint8)
            wider_NB[:start, : names_NB.shape[1]] = names_NB[:start]
            names_NB = wider_NB
        data = np.frombuffer(column.buffers()[2] or b"", np.uint8)[starts[0] : starts[-1]]
        end = start + len(column)
        names_NB[start:end][np.arange(names_NB.shape[1]) < widths_N[:, None]] = data
        start = end
    return Uids([names_NB.view(f"S{names_NB.shape[1]}").ravel()])


def write_examples(folder: Path, chunks: Iterator[list[Row]], audit: Audit) -> None:
    """Write an entry; ``chunks`` are consumed while writing, and may add to ``audit`` meanwhile."""
    import pyarrow as pa

    numbers = pa.list_(pa.int32())
    schema = pa.schema(
        {"uid": pa.string(), "group": pa.string(), "length": pa.int32(), "supervised": pa.int32()}
        | {"ids": numbers, "runs": numbers, "content": pa.binary(CONTENT_BYTES)}
    )
    with pa.OSFile(str(folder / TABLE), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        waiting, num_tokens = list[Row](), 0
        for rows in chunks:
            waiting += rows
            num_tokens += sum(len(part.ids) for _, _, part in rows)
            if len(waiting) >= _MOST_ROWS or num_tokens >= _MOST_TOKENS:
                writer.write_batch(_record_batch(waiting, schema))
                waiting, num_tokens = [], 0
        writer.write_batch(_record_batch(waiting, schema))
    about = {**audit.to_dict(), "table": table_hash(folder / TABLE)}
    (folder / AUDIT).write_text(json.dumps(about), encoding="utf-8")


def _checked_audit(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the audit and the hash of the file of examples."""
    try:
        about = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
        written, found = about.pop("table"), table_hash(folder / TABLE)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from None
    if written != found:
        raise DamagedEntry(f"{TABLE} is not what was written")
    return dict(about), str(written)


def _record_batch(rows: list[Row], schema: Any) -> Any:
    """Build columns from buffers: ``pa.array`` would import pandas if installed, which is slower than a small file."""
    import pyarrow as pa

    uids, groups, parts = zip(*rows, strict=True) if rows else ((), (), ())
    runs = [array("i", part.runs) for part in parts]

    def ints(values: Sequence[int]) -> Any:
        return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(array("i", values))])

    def starts(lengths: Any) -> Any:
        return pa.py_buffer(array("i", accumulate(lengths, initial=0)))

    def texts(values: Sequence[str]) -> Any:
        data = [value.encode() for value in values]
        return pa.Array.from_buffers(
            pa.string(), len(data), [None, starts(map(len, data)), pa.py_buffer(b"".join(data))]
        )

    def lists(values: list[array]) -> Any:
        flat, offsets = ints(array("i", b"".join(values))), starts(map(len, values))
        return pa.Array.from_buffers(pa.list_(pa.int32()), len(values), [None, offsets], children=[flat])

    contents = b"".join(_content(uid, part.ids, run) for uid, part, run in zip(uids, parts, runs, strict=True))
    columns = [texts(uids), texts(groups), ints([len(part.ids) for part in parts])]
    columns += [ints([part.supervised for part in parts]), lists([part.ids for part in parts]), lists(runs)]
    columns += [pa.Array.from_buffers(pa.binary(CONTENT_BYTES), len(rows), [None, pa.py_buffer(contents)])]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _content(uid: str, ids: array, runs: array) -> bytes:
    digest = hashlib.blake2b(f"{uid}\x1f{len(ids)}\x1f".encode(), digest_size=CONTENT_BYTES)
    digest.update(ids)
    digest.update(runs)
    return digest.digest()


def _ints(array: Any) -> np.ndarray:
    """Return an Arrow array of int32 without a copy; ``to_numpy`` would import pandas."""
    return np.frombuffer(array.buffers()[1], np.int32, len(array), offset=4 * array.offset)


def _lists(column: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(_ints(chunk.values), _ints(chunk.offsets)) for chunk in column.chunks]
