"""Sources: where the conversations of an ability come from, and what determines them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from sftlab.data.conversation import Audit, Conversation, Place, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.hub_set import hub_set
from sftlab.data.prepare import BadLimit, prepare
from sftlab.data.readers import Reader, read_conversations
from sftlab.data.records import HUB, content_hash
from sftlab.fingerprint import code_of, described
from sftlab.lab.abilities import LAB_VERSION, lab_conversations
from sftlab.lab.options import LabOptions

LAB = "lab"


class Source(ABC):
    """Where the conversations of one ability come from. Methods take the ability's name, which generators need.

    Attributes:
        num_declared: Number of examples, where nothing else is known.
    """

    num_declared: int | None = None

    @abstractmethod
    def __str__(self) -> str:
        """Describe it for readers, as on a data card."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the files, which messages use to locate records."""
        return [str(self)]

    def notes(self) -> Sequence[str]:
        """Notes for the user on what is read."""
        return ()

    @abstractmethod
    def key(self, ability: str) -> dict[str, Any]:
        """Return what determines the conversations; part of the cache key."""

    @abstractmethod
    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """Read the conversations, each with its place; count in ``audit`` what is changed or left out."""

    def examples(
        self, ability: str, encoder: Encoder, max_length: int, overlong: str = "split", system: str = ""
    ) -> Examples:
        """Return the tokenised conversations, from the cache if possible; see ``prepare``."""
        read, key = partial(self.conversations, ability), self.key(ability)
        return prepare(read, key, encoder, max_length, overlong, system=system)


class FileSource(Source):
    """Record files and hub ids.

    Args:
        paths: Files (json, jsonl, csv, parquet; optionally .gz or .zst) or hub ids.
        reader: Turns a record into a conversation.
        on_bad_record: skip (counted and shown) or fail.
        max_bad_share: Fail when more than this fraction of the records is bad.
        streaming: Read hub data sets without a download.

    Raises:
        ValueError: ``on_bad_record`` has an invalid value, no file is named, or there is nothing to stream.
    """

    def __init__(
        self,
        paths: Sequence[str],
        reader: Reader,
        on_bad_record: str = "skip",
        max_bad_share: float = 0.05,
        streaming: bool = False,
    ) -> None:
        if on_bad_record not in ("skip", "fail"):
            raise ValueError(f"on_bad_record: {on_bad_record!r} is not skip or fail")
        if not paths or not all(path.strip() for path in paths):
            raise ValueError(f"path: {paths!r} names no file; give one, a list of some, or {HUB}<owner>/<name>")
        if streaming and not any(path.startswith(HUB) for path in paths):
            raise ValueError(
                f"streaming: {paths!r} are files, read as streams in any case; it is for {HUB}<owner>/<name>"
            )
        self.paths, self.reader, self.streaming = paths, reader, streaming
        self.on_bad_record, self.max_bad_share = on_bad_record, max_bad_share

    def __str__(self) -> str:
        """Files and reader."""
        return f"{', '.join(self.paths)}, read by {type(self.reader).__name__}"

    @property
    def names(self) -> Sequence[str]:
        """Files and hub ids."""
        return self.paths

    def notes(self) -> Sequence[str]:
        """Name the commits of hub ids without a revision, which are needed to read the same data again."""
        found = (hub_set(path) for path in self.paths if path.startswith(HUB))
        return [f"{one.path} was read at the commit of {one.pinned}" for one in found if one.path != one.pinned]

    def key(self, ability: str) -> dict[str, Any]:
        """Return hashes of the files' content (for hub ids their commits) and of the reader's code and arguments."""
        return {
            "files": [content_hash(path) for path in self.paths],
            "reader": [described(self.reader), code_of(self.reader)],
            "bad": [self.on_bad_record, self.max_bad_share],
        }

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """Read the records with the reader."""
        limits = self.on_bad_record, self.max_bad_share
        return read_conversations(self.paths, self.reader, audit, *limits, self.streaming)

    def examples(
        self, ability: str, encoder: Encoder, max_length: int, overlong: str = "split", system: str = ""
    ) -> Examples:
        """Return the tokenised conversations; one that the template cannot write counts as a bad record."""
        read, key = partial(self.conversations, ability), self.key(ability)
        limit = BadLimit(self.on_bad_record, self.max_bad_share, self.names)
        return prepare(read, key, encoder, max_length, overlong, limit, system)


class LabSource(Source):
    """Generated conversations.

    Args:
        num_examples: How many.
        exclude: Kinds to leave out.
        options: What the conversations are like.
    """

    def __init__(self, num_examples: int, exclude: Sequence[str] = (), options: LabOptions | None = None) -> None:
        self.num_examples, self.exclude, self.options = num_examples, exclude, options or LabOptions()

    def __str__(self) -> str:
        """Generated."""
        return "generated"

    def key(self, ability: str) -> dict[str, Any]:
        """Return the generator's arguments."""
        about = {"lab": LAB_VERSION, "ability": ability, "n": self.num_examples, "exclude": sorted(self.exclude)}
        return {**about, "options": self.options.to_dict()}

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """Generate the conversations."""
        talks = lab_conversations(ability, self.num_examples, exclude=self.exclude, options=self.options)
        for number, talk in enumerate(talks, start=1):
            yield Place(0, number), Conversation(tuple(Turn(*turn) for turn in talk.turns), talk.group)


class DeclaredSource(Source):
    """Only a number of examples, for planning.

    Args:
        num_declared: How many there are.
    """

    def __init__(self, num_declared: int) -> None:
        self.num_declared = num_declared

    def __str__(self) -> str:
        """Declared."""
        return f"{self.num_declared:,} examples declared"

    def key(self, ability: str) -> dict[str, Any]:
        """Return the number."""
        return {"declared": self.num_declared}

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """Raise: a declared source has no conversations.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"data.abilities.{ability}: path is null, only a count is declared: there is nothing to read")


def source_of(
    owner: str,
    path: str | Sequence[str] | None,
    reader: Reader,
    num_examples: int | None,
    exclude: Sequence[str],
    lab: LabOptions | None,
    **reading: Any,
) -> Source:
    """Create the source that an ability's arguments name.

    Args:
        owner: The class that has the arguments, for messages.
        path: Files and hub ids, ``lab``, or None where only a number is declared.
        reader: Of files and hub ids.
        num_examples: How many are generated or declared.
        exclude: As of ``LabSource``.
        lab: As of ``LabSource``.
        reading: As of ``FileSource``.

    Raises:
        ValueError: The arguments do not go together, or one of them is invalid.
    """
    if (num_examples is None) == (path in (None, LAB)):
        raise ValueError(
            f"{owner}: path {path!r} with num_examples {num_examples}; num_examples goes with path: lab (generate) or "
            "null (declare), and is null for files"
        )
    if path != LAB and lab is not None:
        raise ValueError(f"{owner}.lab: {lab} has no use with path {path!r}; it goes with path: lab")
    if num_examples is None:
        return FileSource([path] if isinstance(path, str) else list(path or ()), reader, **reading)
    if reading.get("streaming"):
        raise ValueError(
            f"{owner}.streaming: there is nothing to stream with path {path!r}; it is for {HUB}<owner>/<name>"
        )
    return DeclaredSource(num_examples) if path is None else LabSource(num_examples, exclude, lab)
