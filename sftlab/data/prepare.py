"""Preparation: conversations become examples once, and are kept in a cache.

    conversations --render--> pieces --encode--> ids and runs --fit to max_length--> examples.arrow
    (this thread)             (other threads: the tokenizer works outside of Python's lock)  (this thread)

A cache entry is named by everything that determines its content: records, reader, tokenizer, template, options, and
the versions of our own rules, so that an edit that changes no output leaves it as it is.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.data import conversation, readers, records, template
from sftlab.data import encoder as encoding
from sftlab.data.conversation import Audit, Conversation, Place, Turn
from sftlab.data.encoder import Encoded, Encoder
from sftlab.data.examples import DamagedEntry, Examples, Row, write_examples
from sftlab.data.template import Piece
from sftlab.files import explain, whole_folder
from sftlab.fingerprint import digest
from sftlab.screen import complain

RULES = 1  # version of how conversations are fitted, named and written down: raise it when other examples come out
OVERLONG = ("split", "truncate", "drop")
_CHUNK, _AHEAD = 128, 5  # conversations tokenised at once (few: they stay in the processor's cache); chunks ahead
_THREADS = 3  # give chunks to the tokenizer: while one waits for Python's lock, the cores work for the others
Source = Callable[[Audit], Iterator[tuple[Place, Conversation]]]


def prepare(
    source: Source, key: dict[str, Any], encoder: Encoder, max_length: int, overlong: str = "split"
) -> Examples:
    """Render, tokenise and keep the examples of a source, or find them in the cache.

    A damaged entry of the cache is told and made again.

    Args:
        source: Gives numbered conversations, and counts in the audit it is given what it changes or leaves out.
        key: What determines the conversations (hashes of files, a generator's arguments).
        encoder: Tokenizer and template.
        max_length: Tokens that an example may have.
        overlong: What happens to longer conversations. split: pieces of whole exchanges, each as long as fits, the
            system turn repeated; truncate: cut at the end; drop. An exchange that alone is too long is truncated.

    Raises:
        ValueError: ``overlong`` has no such value, or the cache cannot be written.
    """
    from filelock import FileLock

    if overlong not in OVERLONG:
        raise ValueError(f"data.overlong: {overlong!r} is not one of {', '.join(OVERLONG)}")
    folder = cache_folder() / digest(key, encoder.fingerprint(), max_length, overlong, rules())
    if (found := _opened(folder)) is not None:
        return found
    with _cache_trouble(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # the kernel frees it when its holder dies
            if (found := _opened(folder, tell=True)) is not None:
                return found
            _build(folder, source, _Fitter(encoder, max_length, overlong))
            return Examples(folder)


def rules() -> dict[str, int]:
    """The versions of all rules between a record and its examples."""
    modules = (records, conversation, readers, template, encoding)
    return {module.__name__: module.RULES for module in modules} | {__name__: RULES}


def _opened(folder: Path, tell: bool = False) -> Examples | None:
    """An entry of the cache, None where there is none or a damaged one."""
    if not folder.exists():
        return None
    try:
        return Examples(folder)
    except DamagedEntry as error:
        if tell:
            complain(f"cache: {folder} is damaged ({error}); it is made again")
        return None


@contextmanager
def _cache_trouble(folder: Path) -> Iterator[None]:
    """Say where the cache is when it cannot be written."""
    try:
        yield
    except OSError as error:
        if not str(error.filename or "").startswith(str(folder.parent)):
            raise
        raise ValueError(f"cache: {explain(error)}. The variable SFTLAB_CACHE names another folder for it") from None


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
    audit = Audit()
    with whole_folder(folder) as partial:
        write_examples(partial, _chunks(source(audit), fitter, audit), audit)


def _chunks(conversations: Iterator[tuple[Place, Conversation]], fitter: _Fitter, audit: Audit) -> Iterator[list[Row]]:
    """Uid, group and encoding of each example, chunk by chunk; threads work on later chunks meanwhile."""
    seen: Counter[str] = Counter()

    def rows(chunk: list[tuple[Place, Conversation]], fitted: list[_Fitted]) -> Iterator[Row]:
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
