"""Conversations, the form that every record is converted to, and the rules that clean up what readers return.

Every rule has a name; each use of a rule is counted and shown.

    leading assistant turns       dropped    (ShareGPT pieces may start in the middle)
    trailing user turns           dropped    (nothing answers them)
    turns in a row of one role    joined     by a blank line; kept apart where they differ in more than their texts
                                             (one is not trained, or calls a tool), so that no flag is spread
    empty turns                   dropped
    carriage returns              read as line breaks
    halves of surrogate pairs     replaced   by U+FFFD (half of an emoji is not text)
    no assistant turn left, unknown role, missing key, wrong type, not a dictionary: a bad record
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import PurePath
from typing import Any, NamedTuple

from sftlab import moved

RULES = 2  # version of the mending rules and of uids: raise it when they give other conversations
HALVES = "mended: half of a surrogate pair replaced"
_MOST_CAUSES, _MOST_PLACES = 200, 5  # causes counted separately, and places listed for each: nobody reads more
ROLES = ("system", "user", "assistant", "tool")


class Turn(NamedTuple):
    """One message.

    Attributes:
        role: system, user, assistant or tool.
        text: What it says.
        trained: Whether it is trained; None means that the role decides: assistant turns are trained.
        reasoning: The assistant's reasoning before the answer, separate from the text.
        calls: Tool calls of an assistant turn as JSON; empty if there are none.
        name: Name of the tool whose result a tool turn is.
    """

    role: str
    text: str
    trained: bool | None = None
    reasoning: str = ""
    calls: str = ""
    name: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether its tokens are supervised: answers are, unless a flag says no; nothing else is."""
        return self.role == "assistant" and self.trained is not False

    @property
    def has_content(self) -> bool:
        """Whether it has a text, reasoning or a tool call."""
        return bool(self.text.strip() or self.reasoning.strip() or self.calls)


class Conversation(NamedTuple):
    """The turns of a conversation, the group that a validation split keeps together, and the available tools.

    Attributes:
        turns: In order.
        group: Such as an RFT question or the prefix of a ShareGPT id.
        tools: Specifications of the tools that the assistant may call, as JSON; empty without any.
    """

    turns: tuple[Turn, ...]
    group: str
    tools: str = ""

    @property
    def uid(self) -> str:
        """Hash of the content: roles, texts, and all other parts of the turns."""
        parts = []
        for role, text, *more in self.turns:
            parts.append(f"{role}\x1f{text}" + (f"\x1f{more!r}" if more != [None, "", "", ""] else ""))
        parts += [f"tools\x1f{self.tools}"] if self.tools else []
        text = "\x1e".join(parts)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class BadRecord(ValueError):
    """A record that cannot be used; it is dropped and counted under ``cause``."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause, self._detail = cause, detail

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        """Keep cause and message when pickled."""
        return type(self), (self.cause, self._detail)


class Place(NamedTuple):
    """The place of a record: the index of its file among those of the source (from 0), its number there (from 1)."""

    file: int
    number: int


class Audit:
    """Counts of what was done to records, with the places of the first few.

    Attributes:
        counts: Records by cause, such as ``dropped: unknown role``.
        first: Places of the first records of each cause.
    """

    def __init__(self, counts: dict[str, int] | None = None, first: dict[str, list[Place]] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts or {})
        self.first = {cause: [Place(*place) for place in places] for cause, places in (first or {}).items()}

    def add(self, cause: str, place: Place) -> None:
        """Count the record at ``place`` under ``cause``; beyond ``_MOST_CAUSES`` causes, new ones count as one."""
        self._add(cause, [place], 1)

    def add_all(self, other: Audit) -> None:
        """Add the counts of another audit."""
        for cause, count in other.counts.items():
            self._add(cause, other.first[cause], count)

    def _add(self, cause: str, places: Sequence[Place], count: int) -> None:
        if cause not in self.counts and len(self.counts) >= _MOST_CAUSES:
            cause = f"{cause.partition(':')[0]}: other causes"
        self.counts[cause] += count
        known = self.first.setdefault(cause, [])
        known += places[: _MOST_PLACES - len(known)]

    def places(self, names: Sequence[str]) -> dict[str, str]:
        """Return the first records of each cause as text, such as ``3, 14 of a.jsonl``.

        Args:
            names: Names of the source's files.
        """
        said: dict[str, str] = {}
        short = [PurePath(name).name for name in names]
        names = short if len(set(short)) == len(short) else names
        for cause, places in self.first.items():
            by_file: dict[str, list[str]] = {}
            for file, number in places:
                by_file.setdefault(names[file], []).append(f"{number:,}")
            said[cause] = "; ".join(f"{', '.join(numbers)} of {name}" for name, numbers in by_file.items())
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {"counts": dict(self.counts), "first": self.first}


def mended(raw: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """Apply the rules of this module; return the turns and the names of the rules that were used.

    Raises:
        BadRecord: No assistant turn is left.
    """
    rules: list[str] = []
    turns: list[Turn] = []
    for turn in raw:
        turn = _cleaned(turn, rules)
        if not turn.has_content:
            rules.append("mended: empty turn dropped")
        elif not turns or turn.role == "tool" or turn.role != turns[-1].role:
            turns.append(turn)
        elif _alike(turns[-1], turn):
            turns[-1] = turns[-1]._replace(text=f"{turns[-1].text}\n\n{turn.text}")
            rules.append("mended: turns of one role joined")
        else:
            turns.append(turn)
            rules.append("kept apart: turns of one role that differ in more than their texts")
    start = 1 if turns and turns[0].role == "system" else 0
    while len(turns) > start and turns[start].role in ("assistant", "tool"):
        rules.append(f"mended: leading {turns.pop(start).role} turn dropped")
    while turns and turns[-1].role != "assistant":
        rules.append(f"mended: trailing {turns.pop().role} turn dropped")
    if not turns:
        raise BadRecord("no assistant turn to train")
    return turns, list(dict.fromkeys(rules))


def _cleaned(turn: Turn, rules: list[str]) -> Turn:
    """Return a turn with its texts mended, without a flag that only repeats what the role implies."""
    role, text, trained, reasoning, calls, name = turn
    if role not in ROLES:
        raise BadRecord("unknown role", repr(role))
    if trained is not None and trained == (role == "assistant"):
        turn = turn._replace(trained=None)
    if "\r" in text or "\r" in reasoning:
        turn = turn._replace(text=_line_breaks(text), reasoning=_line_breaks(reasoning))
        rules.append("mended: carriage returns read as line breaks")
    if not (text.isascii() and reasoning.isascii() and calls.isascii() and name.isascii()):
        whole = turn._replace(
            text=halves_replaced(turn.text),
            reasoning=halves_replaced(turn.reasoning),
            calls=halves_replaced(calls),
            name=halves_replaced(name),
        )
        if whole != turn:
            rules.append(HALVES)
        return whole
    return turn


def _line_breaks(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def halves_replaced(text: str) -> str:
    """Replace unpaired surrogates, which cannot be encoded, by U+FFFD; join matching halves."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _alike(one: Turn, other: Turn) -> bool:
    """Return whether two turns differ only in their texts."""
    is_text = not (one.calls or one.reasoning)
    return is_text and one._replace(text="") == other._replace(text="")


def __getattr__(name: str) -> Any:
    """Import readers lazily: an earlier release defined them here."""
    if name in moved.READERS:
        moved.tell(f"sftlab.data.conversation.{name}")
        return getattr(import_module("sftlab.data.readers"), name)
    raise AttributeError(f"module {__name__} has no {name!r}")
