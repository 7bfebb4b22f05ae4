"""Sources: where the conversations of an ability come from, and what determines them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from sftlab.data.conversation import Audit, Conversation, Place, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.prepare import BadLimit, prepare
from sftlab.data.readers import Reader, read_conversations
from sftlab.data.records import HUB, content_hash
from sftlab.fingerprint import code_of, described
from sftlab.lab.abilities import LAB_VERSION, lab_conversations
from sftlab.lab.options import LabOptions

LAB = "lab"


class Source(ABC):
    """Conversations of one ability; ``ability`` is its name, which generators need and messages tell.

    Attributes:
        num_declared: How many examples there are said to be, where nothing but the number is known.
    """

    num_declared: int | None = None

    @abstractmethod
    def __str__(self) -> str:
        """Where the data comes from, as a card tells it."""

    @property
    def names(self) -> Sequence[str]:
        """What places of records are told by: the names of the files."""
        return [str(self)]

    @abstractmethod
    def key(self, ability: str) -> dict[str, Any]:
        """What determines the conversations."""

    @abstractmethod
    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """Conversations, each with its place; what is changed or left out on the way is counted in ``audit``."""

    def examples(
        self, ability: str, encoder: Encoder, max_length: int, overlong: str = "split", system: str = ""
    ) -> Examples:
        """The conversations as examples, from the cache where they are there; see ``prepare``."""
        read, key = partial(self.conversations, ability), self.key(ability)
        return prepare(read, key, encoder, max_length, overlong, system=system)


class FileSource(Source):
    """Record files and hub ids.

    Args:
        paths: Files (json, jsonl, csv, parquet; .gz, .zst) or hub ids.
        reader: Turns a record into a conversation.
        on_bad_record: skip (counted and shown) or fail.
        max_bad_share: Fail when more than this part of the records is bad.

    Raises:
        ValueError: ``on_bad_record`` has no such value, or no file is named.
    """

    def __init__(
        self, paths: Sequence[str], reader: Reader, on_bad_record: str = "skip", max_bad_share: float = 0.05
    ) -> None:
        if on_bad_record not in ("skip", "fail"):
            raise ValueError(f"on_bad_record: {on_bad_record!r} is not skip or fail")
        if not paths or not all(path.strip() for path in paths):
            raise ValueError(f"path: {paths!r} names no file; give one, a list of some, or {HUB}<owner>/<name>")
        self.paths, self.reader = paths, reader
        self.on_bad_record, self.max_bad_share = on_bad_record, max_bad_share

    def __str__(self) -> str:
        """Files and reader."""
        return f"{', '.join(self.paths)}, read by {type(self.reader).__name__}"

    @property
    def names(self) -> Sequence[str]:
        """Files and hub ids."""
        return self.paths

    def key(self, ability: str) -> dict[str, Any]:
        """Content of the files and what the reader is made of."""
        return {
            "files": [content_hash(path) for path in self.paths],
            "reader": [described(self.reader), code_of(self.reader)],
            "bad": [self.on_bad_record, self.max_bad_share],
        }

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """As the reader reads them."""
        return read_conversations(self.paths, self.reader, audit, self.on_bad_record, self.max_bad_share)

    def examples(
        self, ability: str, encoder: Encoder, max_length: int, overlong: str = "split", system: str = ""
    ) -> Examples:
        """The records as examples; one that the template cannot write is a bad one."""
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
        """The generator's arguments."""
        about = {"lab": LAB_VERSION, "ability": ability, "n": self.num_examples, "exclude": sorted(self.exclude)}
        return {**about, "options": self.options.to_dict()}

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """In the order in which they are generated."""
        talks = lab_conversations(ability, self.num_examples, exclude=self.exclude, options=self.options)
        for number, talk in enumerate(talks, start=1):
            yield Place(0, number), Conversation(tuple(Turn(*turn) for turn in talk.turns), talk.group)


class DeclaredSource(Source):
    """Nothing but the number of examples, for planning.

    Args:
        num_declared: How many there are.
    """

    def __init__(self, num_declared: int) -> None:
        self.num_declared = num_declared

    def __str__(self) -> str:
        """Declared."""
        return f"{self.num_declared:,} examples declared"

    def key(self, ability: str) -> dict[str, Any]:
        """The number."""
        return {"declared": self.num_declared}

    def conversations(self, ability: str, audit: Audit) -> Iterator[tuple[Place, Conversation]]:
        """There are none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"data.abilities.{ability}: path is null, only a count is declared: there is nothing to read")
