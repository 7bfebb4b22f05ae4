"""Readers: a record of a format becomes the turns of a conversation."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from sftlab.data.conversation import ROLES, Audit, BadRecord, Conversation, Place, Turn, mended
from sftlab.data.records import BrokenRecord, read_records
from sftlab.data.split import group_by_id

RULES = 1  # version of how our readers read records: raise it when other turns or groups come out


class Reader(ABC):
    """Turns a record into a conversation."""

    @abstractmethod
    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """The turns as the record has them; oddities are mended afterwards.

        Raises:
            BadRecord: The record has no such form.
        """

    def group(self, record: dict[str, Any], turns: Sequence[Turn]) -> str:
        """What must stay together in a split, over all abilities: by default what begins with the same user turn."""
        first = next((turn.text for turn in turns if turn.role == "user"), "")
        return hashlib.blake2b(first.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def read(self, record: Any) -> tuple[Conversation, list[str]]:
        """A conversation and the rules that were needed.

        Raises:
            BadRecord: No rule can mend it.
        """
        if isinstance(record, BrokenRecord):
            raise BadRecord(record.cause, record.reason)
        if not isinstance(record, dict):
            raise BadRecord("not a dictionary", type(record).__name__)
        raw = self.turns(record)
        turns, rules = mended(raw)
        return Conversation(tuple(turns), self.group(record, turns)), rules


def _text(record: dict[str, Any], key: str, required: bool = True) -> str:
    value = record.get(key)
    if value is None and not required:
        return ""
    if value is None:
        raise BadRecord(f"key {key!r} missing", f"it has {sorted(map(str, record))[:6]}")
    if not isinstance(value, str):
        raise BadRecord(f"{key!r} is not a text", type(value).__name__)
    return value


class PairReader(Reader):
    """One question, one answer.

    Args:
        question: Key of the question.
        answer: Key of the answer.
    """

    def __init__(self, question: str, answer: str) -> None:
        self.question, self.answer = question, answer

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Two turns."""
        answer = _text(record, self.answer)
        if not answer.strip():
            raise BadRecord("empty answer")
        return [Turn("user", _text(record, self.question)), Turn("assistant", answer)]


class GSM8KReader(PairReader):
    """GSM8K as published: ``question, answer``."""

    def __init__(self) -> None:
        super().__init__("question", "answer")


class RFTReader(PairReader):
    """GSM8K-RFT as published: ``query, response``; a question's responses are one group."""

    def __init__(self) -> None:
        super().__init__("query", "response")


class MathReader(Reader):
    """GSM8K or GSM8K-RFT, by the keys that a record has."""

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Two turns."""
        return (GSM8KReader() if "question" in record else RFTReader()).turns(record)


class AlpacaReader(Reader):
    """Alpaca's ``instruction, input, output``; other keys are passed over.

    An input of more than one character follows the instruction as FastChat converts it: after a line ``Input:``.
    """

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Two turns."""
        instruction, more = _text(record, "instruction"), _text(record, "input", required=False)
        output = _text(record, "output")
        if not output.strip():
            raise BadRecord("empty answer")
        question = f"{instruction}\nInput:\n{more}" if len(more.strip()) > 1 else instruction
        return [Turn("user", question), Turn("assistant", output)]


_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
    "system": "system",
}


class MessagesReader(Reader):
    """OpenAI messages: ``messages`` with ``role`` and ``content``; a content may be a list of text parts."""

    turns_key, role_key, text_key = "messages", "role", "content"
    roles = {role: role for role in ROLES} | {"developer": "system", "function": "tool"}

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """One turn per message."""
        messages = record.get(self.turns_key)
        if messages is None:
            raise BadRecord(f"key {self.turns_key!r} missing", f"it has {sorted(map(str, record))[:6]}")
        if not isinstance(messages, list) or not messages:
            raise BadRecord("no turns")
        return [self._turn(message) for message in messages]

    def _turn(self, message: Any) -> Turn:
        if not isinstance(message, dict):
            raise BadRecord("a turn is not a dictionary", type(message).__name__)
        role = message.get(self.role_key)
        if not isinstance(role, str) or role not in self.roles:
            raise BadRecord("unknown role", repr(role))
        content = message.get(self.text_key)
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            if not all(isinstance(part, str) for part in parts):
                raise BadRecord("a turn has parts that are no text")
            content = "".join(map(str, parts))
        if content is None:
            content = ""
        if not isinstance(content, str):
            raise BadRecord(f"{self.text_key!r} of a turn is not a text", type(content).__name__)
        return Turn(self.roles[role], content)


class ShareGPTReader(MessagesReader):
    """ShareGPT: ``conversations`` with ``from`` and ``value``; pieces of one conversation share the id before ``_``."""

    turns_key, role_key, text_key = "conversations", "from", "value"
    roles = _SHAREGPT_ROLES

    def group(self, record: dict[str, Any], turns: Sequence[Turn]) -> str:
        """The id without the ``_N`` of a piece; without an id, the first user turn."""
        name, otherwise = record.get("id"), super().group(record, turns)
        return group_by_id(name, otherwise) if isinstance(name, str) and name else otherwise


def read_conversations(
    paths: Sequence[str], reader: Reader, audit: Audit, on_bad_record: str = "skip", max_bad_share: float = 0.05
) -> Iterator[tuple[Place, Conversation]]:
    """The conversations of some files, each with the place of its record.

    Args:
        paths: Files or hub ids.
        reader: Reads their records.
        audit: Gets a count for every rule used and every bad record.
        on_bad_record: skip or fail.
        max_bad_share: Fail when more than this part of all records is bad.

    Raises:
        ValueError: A bad record that may not be skipped, or too many of them: says which and why.
    """
    total = bad = 0
    example = ""
    for file, path in enumerate(paths):
        number = 0
        for number, record in enumerate(read_records(path), start=1):
            place = Place(file, number)
            try:
                conversation, rules = reader.read(record)
            except BadRecord as error:
                bad += 1
                audit.add(f"dropped: {error.cause}", place)
                example = example or f"record {number:,} of {path}: {error}"
                if on_bad_record == "fail":
                    raise ValueError(f"{example}; mend it, or set on_bad_record: skip") from None
                continue
            for rule in rules:
                audit.add(rule, place)
            yield place, conversation
        total += number
    if bad > max_bad_share * total:
        raise ValueError(
            f"{bad:,} of {total:,} records are bad ({bad / total:.0%}, more than max_bad_share {max_bad_share:.0%}); "
            f"the first: {example}. Is {type(reader).__name__} the reader for this file?"
        )
    if total == 0:
        raise ValueError(f"{', '.join(paths)}: no records")
