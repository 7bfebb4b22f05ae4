"""Preparation: conversations become examples once, and are kept in a cache.

    conversations --render--> pieces --encode--> ids and runs --fit to max_length--> examples.arrow
    (this thread)             (on all cores, see ``workers``)                                (this thread)

Numbers, counts and errors come in the order of the records, whichever worker processed them.

A cache entry is named by everything that determines its content: records, reader, tokenizer, template, options, and
the versions of our own rules, so that an edit of code that changes no output keeps the cache valid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.data import conversation, fitter, own_template, readers, records, template
from sftlab.data import encoder as encoding
from sftlab.data.cluster import cluster_in_use
from sftlab.data.conversation import Audit, BadRecord, Conversation, Place
from sftlab.data.encoder import Encoder
from sftlab.data.examples import DamagedEntry, Examples, Row, write_examples
from sftlab.data.fitter import Fitted, Fitter
from sftlab.data.repeats import Repeats
from sftlab.data.workers import Fitting
from sftlab.files import cache_root, explain, whole_folder
from sftlab.fingerprint import digest
from sftlab.screen import complain

RULES = 2  # version of how examples are named and written: raise it when other examples or files result
_CHUNK = 128  # conversations fitted at once: few, so that they stay in the processor's cache
_MOST_CHARACTERS = 1 << 20  # characters of a chunk: fewer conversations if those are long, which bounds memory
Source = Callable[[Audit], Iterator[tuple[Place, Conversation]]]


class BadLimit(NamedTuple):
    """How many conversations a template may refuse.

    Attributes:
        on_bad_record: skip or fail.
        max_bad_share: Largest share of refused conversations.
        names: Names of the source's files.
    """

    on_bad_record: str = "skip"
    max_bad_share: float = 0.05
    names: Sequence[str] = ()


def prepare(
    source: Source,
    key: dict[str, Any],
    encoder: Encoder,
    max_length: int,
    overlong: str = "split",
    limit: BadLimit = BadLimit(),  # noqa: B008 - it never changes
    system: str = "",
) -> Examples:
    """Render, tokenise and cache the examples of a source, or find them in the cache.

    A damaged cache entry is reported and rebuilt.

    Args:
        source: Yields conversations with their places, and counts changes and omissions in the given audit.
        key: What determines the conversations (hashes of files, a generator's arguments).
        encoder: Tokenizer and template.
        max_length: Maximum number of tokens of an example.
        overlong: What happens to longer conversations. split: pieces of whole exchanges, each as long as fits, the
            system turn repeated; truncate: cut at the end; drop. An exchange that alone is too long is truncated.
        limit: How many conversations the template may refuse; each is a bad record.
        system: A system turn for conversations that have none.

    Raises:
        ValueError: ``overlong`` is invalid, the template refuses too much, or the cache cannot be written.
    """
    from filelock import FileLock

    fit = Fitter(encoder, max_length, overlong, system)
    key = {**key, "system": system} if system else key
    folder = cache_folder() / digest(key, encoder.fingerprint(), max_length, overlong, rules())
    if (found := _opened(folder)) is not None:
        return found
    with _cache_trouble(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # the kernel releases it when its holder dies
            if (found := _opened(folder, tell=True)) is not None:
                return found
            _build(folder, source, fit, limit)
            return Examples(folder)


def rules() -> dict[str, int]:
    """Return the versions of all rules between a record and its examples."""
    modules = (records, conversation, readers, own_template, template, encoding, fitter)
    return {module.__name__: module.RULES for module in modules} | {__name__: RULES}


def _opened(folder: Path, tell: bool = False) -> Examples | None:
    """Open an entry of the cache; None if there is none or if it is damaged."""
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
    """Raise a message that names the cache if it cannot be written."""
    try:
        yield
    except OSError as error:
        if not str(error.filename or "").startswith(str(folder.parent)):
            raise
        raise ValueError(f"cache: {explain(error)}. The variable SFTLAB_CACHE names another folder for it") from None


def cache_folder() -> Path:
    """Return the folder for prepared examples."""
    return cache_root() / "examples"


class _Refusals:
    """Conversations that the template cannot write; each is a bad record."""

    def __init__(self, limit: BadLimit) -> None:
        self.limit, self.num_read, self.num_refused, self.first = limit, 0, 0, ""

    def count(self, refused: BadRecord | None, place: Place, audit: Audit) -> None:
        """Count one conversation.

        Raises:
            ValueError: The template refused it, and on_bad_record is fail.
        """
        self.num_read += 1
        if refused is None:
            return
        self.num_refused += 1
        where = f" of {self.limit.names[place.file]}" if self.limit.names else ""
        self.first = self.first or f"record {place.number:,}{where}: {refused}"
        audit.add(f"dropped: {refused.cause}", place)
        if self.limit.on_bad_record == "fail":
            raise ValueError(f"{self.first}; mend it, or set on_bad_record: skip")

    def check(self) -> None:
        """Check the share of refusals, after the last conversation.

        Raises:
            ValueError: Too many were refused.
        """
        if self.num_refused > self.limit.max_bad_share * self.num_read:
            raise ValueError(
                f"data.template: {self.num_refused:,} of {self.num_read:,} conversations cannot be written "
                f"({self.num_refused / self.num_read:.0%}, more than max_bad_share {self.limit.max_bad_share:.0%}); "
                f"the first: {self.first}. Use another template, or raise max_bad_share to go on without them"
            )


def _build(folder: Path, source: Source, fit: Fitter, limit: BadLimit) -> None:
    """Write a cache entry."""
    audit = Audit()
    # Closed here: if left to the garbage collector, its threads might run this and wait for themselves.
    with whole_folder(folder) as partial, closing(_chunks(source(audit), fit, audit, limit)) as chunks:
        write_examples(partial, chunks, audit)


def _chunks(
    conversations: Iterator[tuple[Place, Conversation]], fit: Fitter, audit: Audit, limit: BadLimit
) -> Generator[list[Row], None, None]:
    """Yield uid, group and encoding of each example, chunk by chunk, while threads work on later chunks.

    Raises:
        ValueError: The template refuses too many conversations, or one where none may be bad.
    """
    seen, refusals, counted = Repeats(), _Refusals(limit), Audit()

    def rows(chunk: list[tuple[Place, Conversation]], fitted: list[Fitted]) -> Iterator[Row]:
        times = iter(seen.count([bytes.fromhex(uid) + end.encode() for uid, parts, *_ in fitted for end, _ in parts]))
        for (place, talk), (uid, parts, rules, refused) in zip(chunk, fitted, strict=True):
            refusals.count(refused, place, counted)
            for rule in rules:
                counted.add(rule, place)
            for end, part in parts:
                name = uid + end
                if (number := next(times)) > 1:
                    counted.add("kept: same conversation again", place)
                    name = f"{name}#{number}"
                yield name, talk.group, part

    cluster = cluster_in_use()
    with Fitting(fit, cluster.workers if cluster is not None else None) as fitting:
        work: deque[tuple[list[tuple[Place, Conversation]], Future[list[Fitted]]]] = deque()
        unreadable: Exception | None = None
        while True:
            try:
                chunk = [] if unreadable else _chunk(conversations)
            except Exception as error:  # raised only once everything before it is done
                unreadable, chunk = error, []
            if chunk:
                work.append((chunk, fitting.submit([talk for _, talk in chunk])))
            if not work:
                break
            if len(work) > fitting.most_waiting or not chunk:
                done, fitted = work.popleft()
                yield list(rows(done, fitted.result()))
    if unreadable:
        raise unreadable
    refusals.check()
    audit.add_all(counted)


def _chunk(conversations: Iterator[tuple[Place, Conversation]]) -> list[tuple[Place, Conversation]]:
    """Return the next conversations; how many depends only on them."""
    chunk, num_characters = list[tuple[Place, Conversation]](), 0
    for place, talk in conversations:
        chunk.append((place, talk))
        num_characters += sum(len(turn.text) for turn in talk.turns)
        if len(chunk) >= _CHUNK or num_characters >= _MOST_CHARACTERS:
            break
    return chunk
