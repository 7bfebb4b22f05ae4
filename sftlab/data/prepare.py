"""Preparation: conversations become examples once, and are kept in a cache.

    conversations --render--> pieces --encode--> ids and runs --fit to max_length--> examples.arrow
    (this thread)             (other threads: the tokenizer works outside of Python's lock)  (this thread)

The folder of a cache entry is named by everything that determines its content.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.data import conversation, readers, records, template
from sftlab.data import encoder as encoder_module
from sftlab.data.conversation import Audit, Conversation, Place, Turn
from sftlab.data.encoder import Encoded, Encoder
from sftlab.data.examples import Examples
from sftlab.data.template import Piece
from sftlab.files import whole_folder

OVERLONG = ("split", "truncate", "drop")
_CHUNK, _AHEAD = 128, 5  # conversations tokenised at once (few: they stay in the processor's cache); chunks ahead
_THREADS = 3  # give chunks to the tokenizer: while one waits for Python's lock, the cores work for the others
Source = Callable[[Audit], Iterator[tuple[Place, Conversation]]]


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
    modules = (records, conversation, readers, template, encoder_module, sys.modules[__name__])
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


class _Fitted(NamedTuple):
    """What became of one conversation: its examples, each with the end of its uid, and the rules that were needed."""

    uid: str
    parts: list[tuple[str, Encoded]]
    rules: list[str]


class _Fitter:
    """Conversations to examples that fit; safe to use from several threads."""

    def __init__(self, encoder: Encoder, max_length: int, overlong: str) -> None:
        self.encoder, self.max_length, self.overlong = encoder, max_length, overlong

    def fitted(self, talks: Sequence[Conversation]) -> list[_Fitted]:
        """Render, tokenise and fit some conversations."""
        rendered = [self.encoder.template.render(talk.turns) for talk in talks]
        encoded = self.encoder.encode(rendered)
        return [self._fitted(*one) for one in zip(talks, rendered, encoded, strict=True)]

    def _fitted(self, talk: Conversation, pieces: list[Piece], whole: Encoded) -> _Fitted:
        rules: list[str] = []
        if len(whole.ids) <= self.max_length:
            parts = [("", whole)]
        elif self.overlong == "drop":
            rules.append("dropped: longer than max_length")
            parts = []
        elif self.overlong == "truncate" or len(whole.exchange_lengths) == 1:
            parts = [("", self._truncated(whole, rules))]
        else:
            rules.append("split: longer than max_length")
            parts = [(f"/{i}", part) for i, part in enumerate(self._split(talk, pieces, whole, rules))]
        kept = [(end, part) for end, part in parts if part.supervised]
        rules += ["dropped: nothing supervised within max_length"] * (len(parts) - len(kept))
        return _Fitted(talk.uid, kept, rules)

    def _truncated(self, whole: Encoded, rules: list[str]) -> Encoded:
        rules.append("truncated: longer than max_length")
        left, runs = self.max_length, []
        for run in whole.runs:
            runs.append(min(run, left))
            left -= runs[-1]
        return Encoded(whole.ids[: self.max_length], runs, [self.max_length], [])

    def _split(self, talk: Conversation, pieces: list[Piece], whole: Encoded, rules: list[str]) -> list[Encoded]:
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
            parts.append(part if len(part.ids) <= self.max_length else self._truncated(part, rules))
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
    """Write a cache entry."""
    import pyarrow as pa

    audit, numbers = Audit(), pa.list_(pa.int32())
    schema = pa.schema(
        {"uid": pa.string(), "group": pa.string(), "length": pa.int32(), "supervised": pa.int32()}
        | {"ids": numbers, "runs": numbers}
    )
    with whole_folder(folder) as partial:
        with pa.OSFile(str(partial / "examples.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for rows in _chunks(source(audit), fitter, audit):
                writer.write_batch(_record_batch(rows, schema))
        (partial / "audit.json").write_text(json.dumps(audit.to_dict()), encoding="utf-8")


def _chunks(
    conversations: Iterator[tuple[Place, Conversation]], fitter: _Fitter, audit: Audit
) -> Iterator[list[tuple[str, str, Encoded]]]:
    """Uid, group and encoding of each example, chunk by chunk; threads work on later chunks meanwhile."""
    seen: Counter[str] = Counter()

    def rows(chunk: list[tuple[Place, Conversation]], fitted: list[_Fitted]) -> Iterator[tuple[str, str, Encoded]]:
        for (place, talk), (uid, parts, rules) in zip(chunk, fitted, strict=True):
            for rule in rules:
                audit.add(rule, place)
            for end, part in parts:
                name = uid + end
                seen[name] += 1
                if seen[name] > 1:
                    audit.add("kept: same conversation again", place)
                    name = f"{name}#{seen[name]}"
                yield name, talk.group, part

    with ThreadPoolExecutor(_THREADS) as pool:
        work: deque[tuple[list[tuple[Place, Conversation]], Future]] = deque()
        while True:
            chunk = list(islice(conversations, _CHUNK))
            if chunk:
                work.append((chunk, pool.submit(fitter.fitted, [talk for _, talk in chunk])))
            if not work:
                return
            if len(work) > _AHEAD or not chunk:  # the threads always find a chunk waiting
                done, fitted = work.popleft()
                yield list(rows(done, fitted.result()))


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
