"""Examples: conversations as token ids and masks, prepared once and kept in an Arrow file that is mapped into memory.

    conversations --render--> pieces --encode--> ids and runs --fit to max_length--> examples.arrow
                              (this thread)      (other threads: the tokenizer works outside of Python's lock)

The folder of a cache entry is named by everything that determines its content.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import os
import shutil
import sys
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from sftlab.data import conversation, records, template
from sftlab.data import encoder as encoder_module
from sftlab.data.conversation import Audit, Conversation, Reader, Turn, read_conversations
from sftlab.data.encoder import Encoded, Encoder
from sftlab.data.records import content_hash
from sftlab.data.template import Piece

OVERLONG = ("split", "truncate", "drop")
_CHUNK, _AHEAD = 64, 3  # conversations tokenised at once (few: they stay in the processor's cache); chunks ahead
_THREADS = 2  # give chunks to the tokenizer: while one waits for Python's lock, the cores work for the other
Source = Callable[[Audit], Iterator[tuple[int, Conversation]]]


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
        self.lengths_N = table["length"].to_numpy()
        self.supervised_N = table["supervised"].to_numpy()
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


def _lists(column: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in column.chunks]


def prepare_files(
    paths: Sequence[str],
    reader: Reader,
    encoder: Encoder,
    max_length: int,
    overlong: str = "split",
    on_bad_record: str = "skip",
    max_bad_share: float = 0.05,
) -> Examples:
    """The examples of record files; see ``prepare``.

    Raises:
        ValueError: A file cannot be read, has too many bad records, or an option has no such value.
    """
    if on_bad_record not in ("skip", "fail"):
        raise ValueError(f"on_bad_record: {on_bad_record!r} is not skip or fail")
    key = {
        "files": [content_hash(path) for path in paths],
        "reader": [type(reader).__qualname__, _source_of(type(reader)), repr(sorted(vars(reader).items()))],
        "bad": [on_bad_record, max_bad_share],
    }

    def source(audit: Audit) -> Iterator[tuple[int, Conversation]]:
        return read_conversations(paths, reader, audit, on_bad_record, max_bad_share)

    return prepare(source, key, encoder, max_length, overlong)


def _source_of(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


def prepare(
    source: Source, key: dict[str, Any], encoder: Encoder, max_length: int, overlong: str = "split"
) -> Examples:
    """Render, tokenise and keep the examples of a source, or find them in the cache.

    Args:
        source: Gives numbered conversations, and counts in the audit it is given what it changes or leaves out.
        key: What determines the conversations (hashes of files, a generator's arguments).
        encoder: Tokenizer and template.
        max_length: Tokens that an example may have.
        overlong: What happens to longer conversations. split: pieces of whole exchanges, each as long as fits, the
            system turn repeated; truncate: cut at the end; drop. An exchange that alone is too long is truncated.

    Raises:
        ValueError: ``overlong`` has no such value.
    """
    from filelock import FileLock

    if overlong not in OVERLONG:
        raise ValueError(f"data.overlong: {overlong!r} is not one of {', '.join(OVERLONG)}")
    modules = (records, conversation, template, encoder_module, sys.modules[__name__])
    code = [inspect.getsource(module) for module in modules]
    everything = [key, encoder.fingerprint(), max_length, overlong, code]
    name = hashlib.blake2b(json.dumps(everything, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # the kernel frees it when its holder dies
            if not folder.is_dir():
                _build(folder, source, _Fitter(encoder, max_length, overlong))
    return Examples(folder)


def cache_folder() -> Path:
    """SFTLAB_CACHE, or ~/.cache/sftlab."""
    return Path(os.environ.get("SFTLAB_CACHE", Path.home() / ".cache" / "sftlab")) / "examples"


class _Fitter:
    """Conversations to examples that fit, with the audit of what did not."""

    def __init__(self, encoder: Encoder, max_length: int, overlong: str) -> None:
        self.encoder, self.max_length, self.overlong = encoder, max_length, overlong
        self.audit = Audit()
        self._seen: Counter[str] = Counter()

    def rendered(self, chunk: list[tuple[int, Conversation]]) -> list[list[Piece]]:
        """The pieces of a chunk."""
        return [self.encoder.template.render(talk.turns) for _, talk in chunk]

    def rows(
        self, chunk: list[tuple[int, Conversation]], rendered: list[list[Piece]], encoded: list[Encoded]
    ) -> Iterator[tuple[str, str, Encoded]]:
        """Uid, group and encoding of each example of a chunk."""
        for (number, talk), pieces, whole in zip(chunk, rendered, encoded, strict=True):
            if len(whole.ids) <= self.max_length:
                parts = [("", whole)]
            elif self.overlong == "drop":
                self.audit.add("dropped: longer than max_length", number)
                continue
            elif self.overlong == "truncate" or len(whole.exchange_lengths) == 1:
                parts = [("", self._truncated(whole, number))]
            else:
                self.audit.add("split: longer than max_length", number)
                parts = [(f"/{i}", part) for i, part in enumerate(self._split(talk, pieces, whole, number))]
            uid = talk.uid
            for suffix, part in parts:
                if not part.supervised:
                    self.audit.add("dropped: nothing supervised within max_length", number)
                    continue
                name = uid + suffix
                self._seen[name] += 1
                if self._seen[name] > 1:
                    self.audit.add("kept: same conversation again", number)
                    name = f"{name}#{self._seen[name]}"
                yield name, talk.group, part

    def _truncated(self, whole: Encoded, number: int) -> Encoded:
        self.audit.add("truncated: longer than max_length", number)
        left, runs = self.max_length, []
        for run in whole.runs:
            runs.append(min(run, left))
            left -= runs[-1]
        return Encoded(whole.ids[: self.max_length], runs, [self.max_length], [])

    def _split(self, talk: Conversation, pieces: list[Piece], whole: Encoded, number: int) -> list[Encoded]:
        """Pieces of whole exchanges, each as long as fits."""
        head = [turn for turn in talk.turns[:1] if turn.role == "system"]
        exchanges = _exchanges(talk.turns[len(head) :])

        known = self.encoder.known(pieces, whole)

        def encoded(start: int, end: int) -> Encoded:
            turns = [*head, *(turn for exchange in exchanges[start:end] for turn in exchange)]
            return self.encoder.encode_again(self.encoder.template.render(turns), known)

        parts, start = [], 0
        while start < len(exchanges):
            end, alone = start + 1, encoded(start, start + 1)
            part, length = alone, len(alone.ids)
            while end < len(exchanges) and length + whole.exchange_lengths[end] <= self.max_length:
                length += whole.exchange_lengths[end]
                end += 1
            while end > start + 1 and len((part := encoded(start, end)).ids) > self.max_length:
                end -= 1
            part = part if end > start + 1 else alone
            parts.append(part if len(part.ids) <= self.max_length else self._truncated(part, number))
            start = end
        return parts


def _exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges


def _build(folder: Path, source: Source, fitter: _Fitter) -> None:
    """Write a cache entry beside its place and rename it when complete."""
    import pyarrow as pa

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    numbers = pa.list_(pa.int32())
    schema = pa.schema(
        {"uid": pa.string(), "group": pa.string(), "length": pa.int32(), "supervised": pa.int32()}
        | {"ids": numbers, "runs": numbers}
    )
    with pa.OSFile(str(partial / "examples.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        gc.freeze()  # looking through all that torch has loaded, again and again, is 4 % of the time
        try:
            for rows in _chunks(source(fitter.audit), fitter):
                writer.write_batch(_record_batch(rows, schema))
        finally:
            gc.unfreeze()
    (partial / "audit.json").write_text(json.dumps(fitter.audit.to_dict()), encoding="utf-8")
    partial.rename(folder)


def _chunks(
    conversations: Iterator[tuple[int, Conversation]], fitter: _Fitter
) -> Iterator[list[tuple[str, str, Encoded]]]:
    """Rows, chunk by chunk; the tokenizer works on later chunks meanwhile."""
    with ThreadPoolExecutor(_THREADS) as pool:
        work: deque[tuple[list[tuple[int, Conversation]], list[list[Piece]], Future]] = deque()
        while True:
            chunk = list(islice(conversations, _CHUNK))
            if chunk:
                pieces = fitter.rendered(chunk)
                work.append((chunk, pieces, pool.submit(fitter.encoder.tokenise, pieces)))
            if not work:
                return
            if len(work) > _AHEAD or not chunk:  # the tokenizer always has a chunk waiting
                done, pieces, tokenised = work.popleft()
                yield list(fitter.rows(done, pieces, fitter.encoder.assemble(pieces, tokenised.result())))


def _record_batch(rows: list[tuple[str, str, Encoded]], schema: Any) -> Any:
    """Columns from buffers: ``pa.array`` imports pandas when it is installed, which takes longer than a small file."""
    import pyarrow as pa

    uids, groups, parts = zip(*rows, strict=True) if rows else ((), (), ())

    def ints(values: Sequence[int]) -> Any:
        return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(array("i", values))])

    def starts(lengths: Iterable[int]) -> Any:
        return pa.py_buffer(array("i", accumulate(lengths, initial=0)))

    def texts(values: Sequence[str]) -> Any:
        data = [value.encode() for value in values]
        return pa.Array.from_buffers(
            pa.string(), len(data), [None, starts(map(len, data)), pa.py_buffer(b"".join(data))]
        )

    def lists(values: list[array]) -> Any:
        flat, offsets = ints(array("i", b"".join(values))), starts(map(len, values))
        return pa.Array.from_buffers(pa.list_(pa.int32()), len(values), [None, offsets], children=[flat])

    columns = [texts(uids), texts(groups), ints([len(part.ids) for part in parts])]
    columns += [ints([part.supervised for part in parts]), lists([part.ids for part in parts])]
    columns += [lists([array("i", part.runs) for part in parts])]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
