"""Readers: convert records of a format into conversations.

``keys`` defines what the other keys of a record mean and which of them are harmless; the rest are counted.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sftlab.data import keys
from sftlab.data.conversation import (
    HALVES,
    ROLES,
    Audit,
    BadRecord,
    Conversation,
    Place,
    Turn,
    halves_replaced,
    mended,
)
from sftlab.data.records import BrokenRecord, read_records
from sftlab.data.split import group_by_id

RULES = 5  # version of how our readers read records (keys too): raise it when other turns or groups result


class Reader(ABC):
    """Converts records into conversations; subclasses define ``turns``."""

    @abstractmethod
    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Return the turns of a record, unchanged; irregularities are cleaned up afterwards.

        Raises:
            BadRecord: The record does not have this format.
        """

    def keys(self, record: dict[str, Any]) -> frozenset[str] | None:
        """Return the keys that ``turns`` reads; others are interpreted, counted or refused. None: it handles all."""
        return None

    def passed_over(self, record: dict[str, Any]) -> list[str]:
        """Return the names under which the unused keys of a record are counted.

        Raises:
            BadRecord: An unused key may change what is trained.
        """
        read = self.keys(record)
        return [] if read is None or record.keys() <= read else keys.passed_over(record, read | keys.OF_RECORDS)

    def group(self, record: dict[str, Any], turns: Sequence[Turn]) -> str:
        """Return the group that the validation split keeps together; by default the first user turn."""
        first = next((turn.text for turn in turns if turn.role == "user"), "")
        return hashlib.blake2b(first.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def read(self, record: Any) -> tuple[Conversation, list[str]]:
        """Read a record; return the conversation and the names of the rules that were applied.

        Raises:
            BadRecord: It cannot be used.
        """
        if isinstance(record, BrokenRecord):
            raise BadRecord(record.cause, record.reason)
        if not isinstance(record, dict):
            hint = "; a file that is one list of records is named .json" if isinstance(record, list) else ""
            raise BadRecord("not a dictionary", type(record).__name__ + hint)
        raw, tools = self.turns(record), ""
        if self.keys(record) is not None:
            raw, tools = keys.beside(record, raw)
        turns, rules = mended(raw)
        if (whole := halves_replaced(tools)) != tools:
            rules.append(HALVES)
        rules += self.passed_over(record)
        group = halves_replaced(self.group(record, turns))
        return Conversation(tuple(turns), group, whole), list(dict.fromkeys(rules))


def _text(record: dict[str, Any], key: str, required: bool = True) -> str:
    value = keys.said(record, key) if not required else record.get(key)
    if value is None and not required:
        return ""
    if value is None:
        raise BadRecord(f"key {key!r} missing", _it_has(record))
    if not isinstance(value, str):
        raise BadRecord(f"{key!r} is not a text", type(value).__name__)
    return value


def _it_has(record: dict[str, Any]) -> str:
    return f"it has {', '.join(keys.shortened(key) for key in sorted(map(str, record))[:6]) or 'no keys'}"


def _exchanges(record: dict[str, Any], question: str, answer: str) -> list[Turn]:
    """Return the exchanges of a record's history, then its own."""
    if not answer.strip():
        raise BadRecord("empty answer")
    own = [Turn("user", question), Turn("assistant", answer, reasoning=keys.reasoning(record))]
    wrong = BadRecord(f"{keys.HISTORY!r} is not a list of pairs of texts")
    try:
        history = keys.listed(keys.said(record, keys.HISTORY)) or []
    except ValueError:
        raise wrong from None
    is_pairs = isinstance(history, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history)
    if not is_pairs or not all(isinstance(text, str) for pair in history for text in pair):
        raise wrong
    return [Turn(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)] + own


_OF_PAIRS = keys.OF_ANSWERS | {keys.HISTORY}


class PairReader(Reader):
    """One question and one answer, optionally with a ``history`` of earlier pairs and separate reasoning.

    Args:
        question: Key of the question.
        answer: Key of the answer.
    """

    def __init__(self, question: str, answer: str) -> None:
        self.question, self.answer = question, answer

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Return two turns, after those of the history."""
        return _exchanges(record, _text(record, self.question), _text(record, self.answer))

    def keys(self, record: dict[str, Any]) -> frozenset[str]:
        """Return question, answer, history and reasoning."""
        return _OF_PAIRS | {self.question, self.answer}


class GSM8KReader(PairReader):
    """GSM8K as published: ``question, answer``."""

    def __init__(self) -> None:
        super().__init__("question", "answer")


class RFTReader(PairReader):
    """GSM8K-RFT as published: ``query, response``; a question's responses are one group."""

    def __init__(self) -> None:
        super().__init__("query", "response")


class MathReader(Reader):
    """GSM8K or GSM8K-RFT, whichever keys a record has."""

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Return two turns, read by the reader of GSM8K or of RFT."""
        return self._reader(record).turns(record)

    def keys(self, record: dict[str, Any]) -> frozenset[str]:
        """Return the keys of that reader."""
        return self._reader(record).keys(record)

    @staticmethod
    def _reader(record: dict[str, Any]) -> PairReader:
        return _RFT if record.get("question") is None and "query" in record else _GSM8K


_GSM8K, _RFT = GSM8KReader(), RFTReader()


class AlpacaReader(Reader):
    """Alpaca's ``instruction, input, output``, optionally with ``system`` and a ``history`` of pairs.

    An input follows the instruction after a line ``Input:``, as FastChat converts it; unlike FastChat, inputs of a
    single character are kept.
    """

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Return two turns, after those of the history."""
        instruction, more = _text(record, "instruction"), _text(record, "input", required=False)
        both = instruction.strip() and more.strip()
        question = f"{instruction}\nInput:\n{more}" if both else more if more.strip() else instruction
        return _exchanges(record, question, _text(record, "output"))

    def keys(self, record: dict[str, Any]) -> frozenset[str]:
        """Return instruction, input, output, history and reasoning."""
        return _OF_ALPACA


_OF_ALPACA = _OF_PAIRS | {"instruction", "input", "output"}


_CALL = "call"  # the role of a turn whose text is a tool call as JSON
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALL),
    "system": "system",
}


class MessagesReader(Reader):
    """OpenAI messages: ``messages`` with ``role`` and ``content``, possibly as JSON; a content may be a list of texts.

    Tool calls, available tools, reasoning and flags that say what is trained are read as described in ``keys``.
    """

    turns_key, role_key, text_key = "messages", "role", "content"
    roles = {role: role for role in ROLES} | {"developer": "system", "function": "tool"}

    def turns(self, record: dict[str, Any]) -> list[Turn]:
        """Return one turn per message."""
        turns, names = [], dict[str, str]()
        for message in keys.results_by_calls(self._messages(record)):
            if self._is_plain(message):
                kind = self.roles.get(message[self.role_key], _CALL)
                if kind != _CALL:
                    turns.append(Turn(kind, message[self.text_key]))
                    continue
            turns.append(self._turn(message, names))
        return turns

    def keys(self, record: dict[str, Any]) -> frozenset[str]:
        """Return the key of the messages."""
        return frozenset((self.turns_key,))

    def passed_over(self, record: dict[str, Any]) -> list[str]:
        """Return the unused keys of a record and of its messages."""
        causes = super().passed_over(record)
        messages = self._messages(record) if self.turns_key in record else []
        if all(self._is_plain(message) for message in messages):
            return causes
        if keys.results_by_calls(messages) != messages:
            causes.append("mended: results of tools put in the order of their calls")
        for message in messages:
            if isinstance(message, dict) and len(message) > 2:
                known = keys.known_of_turn(self.roles.get(str(message.get(self.role_key)), ""))
                causes += keys.passed_over(message, known | {self.role_key, self.text_key}, " of a turn")
                causes += keys.calls(message)[1]
            content = message.get(self.text_key) if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                causes += keys.passed_over(part, _OF_PARTS, " of a part") if isinstance(part, dict) else []
        return causes

    def _is_plain(self, message: Any) -> bool:
        """Return whether a message only has a role and a text."""
        return (
            type(message) is dict
            and len(message) == 2
            and type(message.get(self.text_key)) is str
            and type(message.get(self.role_key)) is str
        )

    def _messages(self, record: dict[str, Any]) -> list[Any]:
        messages = record.get(self.turns_key)
        if messages is None:
            raise BadRecord(f"key {self.turns_key!r} missing", _it_has(record))
        try:
            messages = keys.listed(messages)
        except ValueError as error:
            raise BadRecord(f"{self.turns_key!r} is text but not JSON", str(error)[:80]) from None
        if not isinstance(messages, list):
            raise BadRecord(f"{self.turns_key!r} is not a list of turns", type(messages).__name__)
        if not messages:
            raise BadRecord("no turns")
        return messages

    def _turn(self, message: Any, names: dict[str, str]) -> Turn:
        """Read a turn; ``names`` has the tools' names by the ids of their calls."""
        if not isinstance(message, dict):
            raise BadRecord("a turn is not a dictionary", type(message).__name__)
        role = message.get(self.role_key)
        if not isinstance(role, str) or role not in self.roles:
            raise BadRecord("unknown role", repr(role)[:80])
        kind = self.roles[role]
        text, thoughts = _content(message.get(self.text_key), self.text_key)
        calls, _ = keys.calls_of(text) if kind == _CALL else keys.calls(message)
        if kind == _CALL:
            kind, text = "assistant", ""
        apart = keys.reasoning(message, " of a turn")
        if thoughts and apart not in ("", thoughts):
            raise BadRecord("thoughts of a turn that contradict one another")
        thoughts = thoughts or apart
        if kind != "assistant" and (calls or thoughts):
            raise BadRecord(f"a {kind} turn with {'tool calls' if calls else 'thoughts'}")
        names.update((call["id"], call["function"]["name"]) for call in calls if "id" in call)
        name = keys.tool_name(message, names) if kind == "tool" else ""
        trained = keys.trained_by_flags(message, " of a turn")
        return Turn(kind, text, trained, thoughts, keys.as_json(calls), name)


_OF_PARTS = frozenset(("type", "text", "thinking", "signature"))


def _content(content: Any, key: str) -> tuple[str, str]:
    """Return text and reasoning of a content, which may be a list of parts."""
    texts, thoughts = [], []
    for part in content if isinstance(content, list) else [content]:
        fields = part if isinstance(part, dict) else {"text": part}
        kind = fields.get("type", "text")
        if kind in ("text", "input_text", "output_text") and isinstance(fields.get("text"), str):
            texts.append(fields["text"])
        elif kind == "thinking" and isinstance(fields.get("thinking"), str):
            thoughts.append(fields["thinking"])
        elif isinstance(content, list):
            raise BadRecord("a turn has parts that are not text", repr(kind)[:60])
        elif part is not None:
            raise BadRecord(f"{key!r} of a turn is not a text", type(content).__name__)
    return "".join(texts), "\n".join(thoughts)


class ShareGPTReader(MessagesReader):
    """ShareGPT: ``conversations`` with ``from`` and ``value``; pieces of one conversation share the id before ``_``.

    As in LLaMA-Factory, a ``function_call`` turn is a tool call as JSON and ``observation`` its result.
    """

    turns_key, role_key, text_key = "conversations", "from", "value"
    roles = _SHAREGPT_ROLES

    def group(self, record: dict[str, Any], turns: Sequence[Turn]) -> str:
        """Return the id without the ``_N`` of a piece; without an id, the first user turn."""
        name, otherwise = record.get("id"), super().group(record, turns)
        return group_by_id(name, otherwise) if isinstance(name, str) and name else otherwise


def read_conversations(
    paths: Sequence[str],
    reader: Reader,
    audit: Audit,
    on_bad_record: str = "skip",
    max_bad_share: float = 0.05,
    streaming: bool = False,
) -> Iterator[tuple[Place, Conversation]]:
    """Read the conversations of files, each with the place of its record.

    Args:
        paths: Files or hub ids.
        reader: Converts their records.
        audit: Counts every applied rule and every bad record.
        on_bad_record: skip or fail.
        max_bad_share: Fail when more than this fraction of all records is bad.
        streaming: Read hub data sets without a download.

    Raises:
        ValueError: A bad record may not be skipped, or there are too many of them; says which and why.
    """
    total, causes, example = 0, Counter[str](), ""
    for file, path in enumerate(paths):
        number = 0
        for number, record in enumerate(read_records(path, streaming), start=1):
            place = Place(file, number)
            try:
                conversation, rules = reader.read(record)
            except BadRecord as error:
                causes[error.cause] += 1
                audit.add(f"dropped: {error.cause}", place)
                example = example or f"record {number:,} of {path}: {error}"
                if on_bad_record == "fail":
                    raise ValueError(f"{example}; mend it, or set on_bad_record: skip") from None
                continue
            except Exception as error:  # of a user's reader: its author needs the record's place and the original error
                fault = f"{type(reader).__name__} fails on it: {type(error).__name__}: {error}"
                told = f"record {number:,} of {path}: {fault}; a reader raises BadRecord for what it cannot read"
                raise ValueError(told) from error
            for rule in rules:
                audit.add(rule, place)
            yield place, conversation
        total += number
        if number == 0:
            audit.add("empty: a file without records", Place(file, 0))
    if (bad := causes.total()) > max_bad_share * total:
        most = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common(4)) if len(causes) > 1 else ""
        raise ValueError(
            f"{bad:,} of {total:,} records are bad ({bad / total:.0%}, more than max_bad_share {max_bad_share:.0%}); "
            f"the first: {example}. {f'By cause: {most}. ' if most else ''}"
            f"Is {type(reader).__name__} the reader for this file?"
        )
    if total == 0:
        raise ValueError(f"{', '.join(paths)}: no records")
