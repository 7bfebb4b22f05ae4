"""Keys of records and messages other than their texts: what each means, so that none is silently ignored.

    trained or not   weight, loss, loss_mask, loss_weight, loss_scale, train, trained, training, trainable: 0 or 1,
                     false or true, no or yes; masked is their opposite. In a turn it is about the turn, in a record
                     about its answers that say nothing themselves
    thoughts         reasoning_content, reasoning, thinking
    tools, calls     tools, functions; tool_calls, function_call: lists, or the same as JSON
    what comes first system, system_prompt; history (of a question and its answer)
    harmless         ids, sources and kinds; see HARMLESS

Any other key is counted as passed over. But a record is bad if a key has a meaning that cannot be followed there (a
mask, tools of a turn), if its name is about training and its value is not text, and if it holds something other than
text (images). An empty value (null, "", [], {}, NaN) counts as a missing key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sftlab.data.conversation import BadRecord, Turn, halves_replaced
from sftlab.data.json_records import parse_json, shortened

_TRAINED = ("weight", "loss", "loss_mask", "loss_weight", "loss_scale", "train", "trained", "training", "trainable")
_FLAGS = dict.fromkeys(_TRAINED, True) | {"masked": False}
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
HISTORY = "history"
_NO_TEXT = frozenset(("image", "images", "video", "videos", "audio", "audios"))
_UNCLEAR = frozenset(
    "mask training_detail train_detail channel refusal documents chat_template_kwargs function_calls".split()
).union((HISTORY,), _FLAGS, _SYSTEM, _TOOLS, _CALLS, _REASONING)
_ABOUT_TRAINING = frozenset(
    "train trained training trainable loss losses mask masks masked weight weights learn learned learnable supervise "
    "supervised ignore ignored".split()
)
HARMLESS = frozenset(
    "id _id idx index uid uuid hash conversation_id conv_id prompt_id question_id source dataset split category topic "
    "tags language lang model url license date timestamp".split()
)
OF_RECORDS = frozenset((*_FLAGS, *_SYSTEM, *_TOOLS))  # keys that a record of any form may have
OF_ANSWERS = frozenset(_REASONING)
_TOOL_NAME = ("name", "tool_name")
_OF_TURNS = frozenset((*_FLAGS, *_REASONING, *_CALLS))
_OF_TOOL_TURNS = frozenset((*_TOOL_NAME, "tool_call_id", *_FLAGS))
_FLAG_TEXTS = dict.fromkeys("0 0.0 false no off".split(), False) | dict.fromkeys("1 1.0 true yes on".split(), True)


def said(fields: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; None if it is missing or empty."""
    value = fields.get(key)
    is_empty = isinstance(value, (str, list, dict, tuple)) and not value
    return None if is_empty or (isinstance(value, float) and value != value) else value


def listed(value: Any) -> Any:
    """Return a value, decoded if it is JSON in a text: columns often hold lists that way.

    Raises:
        ValueError: It is text but not JSON.
    """
    return parse_json(value) if isinstance(value, str) else value


def passed_over(fields: Mapping[str, Any], known: Collection[str], of: str = "") -> list[str]:
    """Return the names under which unknown keys are counted.

    Args:
        fields: A record or a message.
        known: Keys that are used.
        of: What messages add to the key: nothing, or `` of a turn``.

    Raises:
        BadRecord: A key may change what is trained, or its value is not text.
    """
    causes = []
    for key in sorted(map(str, fields.keys() - HARMLESS - set(known))):
        if (value := said(fields, key)) is None:
            continue
        if key in _NO_TEXT:
            raise BadRecord(f"key {key!r}{of}: it is not text")
        flag = _FLAG_TEXTS.get(value.strip().lower()) if isinstance(value, str) else value
        is_flag = flag is not None and not _ABOUT_TRAINING.isdisjoint(_words(key))
        is_rejected = (key == "label" and value is False) or (key == "kto_tag" and flag in (False, 0))
        if key in _UNCLEAR or is_flag or is_rejected:
            raise BadRecord(f"key {shortened(key)}{of}: it may change what is trained, and is not understood")
        causes.append(f"passed over: key {shortened(key)}{of}")
    return causes


def _words(key: str) -> list[str]:
    return re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())


def beside(record: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[list[Turn], str]:
    """Add what a record holds beside its turns: return the turns, and its tools as JSON.

    Raises:
        BadRecord: It cannot be followed.
    """
    if OF_RECORDS.isdisjoint(record):
        return list(turns), ""
    if (trained := trained_by_flags(record, " of a record")) is not None:
        turns = [t._replace(trained=trained) if t.role == "assistant" and t.trained is None else t for t in turns]
    if text := _only_text(record, _SYSTEM, ""):
        first = Turn("system", text)
        turns = list(turns) if first in turns[:1] else [first, *turns]
    return list(turns), _tools(record)


def trained_by_flags(fields: Mapping[str, Any], of: str) -> bool | None:
    """Return whether flags say that something is trained or not; None if there are none.

    Raises:
        BadRecord: A flag is neither 0 nor 1, or two of them contradict each other.
    """
    found = {}
    for key in fields.keys() & _FLAGS.keys():
        if (value := said(fields, key)) is not None:
            value = _FLAG_TEXTS.get(value.strip().lower(), value) if isinstance(value, str) else value
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise BadRecord(f"{key!r}{of} is neither 0 nor 1", shortened(value))
            found[key] = bool(value) is _FLAGS[key]
    if len(set(found.values())) > 1:
        raise BadRecord(f"flags{of} contradict one another", ", ".join(sorted(found)))
    return next(iter(found.values()), None)


def reasoning(fields: Mapping[str, Any], of: str = "") -> str:
    """Return the reasoning before an answer.

    Raises:
        BadRecord: It is not text, or two keys hold different texts.
    """
    return "" if OF_ANSWERS.isdisjoint(fields) else _only_text(fields, _REASONING, of)


def _only_text(fields: Mapping[str, Any], keys: Sequence[str], of: str) -> str:
    """Return the text under one of several keys with the same meaning."""
    found = {key: value for key in keys if (value := said(fields, key)) is not None}
    for key, value in found.items():
        if not isinstance(value, str):
            raise BadRecord(f"{key!r}{of} is not a text", type(value).__name__)
    if len(set(found.values())) > 1:
        raise BadRecord(f"keys {' and '.join(map(repr, found))}{of} contradict one another")
    return next(iter(found.values()), "")


def _tools(record: Mapping[str, Any]) -> str:
    """Return specifications of tools as JSON, each in OpenAI's form."""
    found = [key for key in _TOOLS if said(record, key) is not None]
    if len(found) > 1:
        raise BadRecord("keys 'tools' and 'functions' are both there")
    if not found:
        return ""
    wrong = BadRecord(f"{found[0]!r} is not a list of specifications of tools, each with a name")
    specifications = _json_of(record[found[0]], wrong)
    if not isinstance(specifications, list):
        raise wrong
    return _as_json([_tool(_json_of(one, wrong), wrong) for one in specifications], wrong) if specifications else ""


def _tool(specification: Any, wrong: BadRecord) -> dict[str, Any]:
    if not isinstance(specification, dict):
        raise wrong
    inner = specification.get("function", specification)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise wrong
    return specification if "function" in specification else {"type": "function", "function": specification}


def calls(message: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a message's tool calls in OpenAI's form, and the names under which their other keys are counted.

    Raises:
        BadRecord: They are malformed.
    """
    found = [key for key in _CALLS if said(message, key) is not None]
    if len(found) > 1:
        raise BadRecord("keys 'tool_calls' and 'function_call' of a turn are both there")
    return calls_of(message[found[0]]) if found else ([], [])


def calls_of(value: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Like ``calls``, for one call or a list of calls, perhaps as JSON."""
    wrong = BadRecord("a tool call is not of the form name and arguments")
    value = _json_of(value, wrong)
    found = value if isinstance(value, list) else [value]
    made, causes = [], []
    for one in (_json_of(item, wrong) for item in found):
        if not isinstance(one, dict):
            raise wrong
        function = one.get("function", one)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise wrong
        unknown = sorted(map(str, {*one, *function} - {"id", "type", "index", "function", "name", "arguments"}))
        if unknown and "arguments" not in function:
            raise BadRecord(wrong.cause, f"it has {', '.join(map(shortened, unknown))}")  # arguments by another name
        causes += [f"passed over: key {shortened(key)} of a tool call" for key in unknown]
        call = {"type": "function", "function": {"name": function["name"], "arguments": _arguments(function)}}
        made.append({"id": str(one["id"]), **call} if said(one, "id") is not None else call)
    return made, causes


def results_by_calls(messages: list[Any]) -> list[Any]:
    """Put the results of tools in the order of the calls that their ids name; most templates write no ids."""
    if not any(isinstance(message, dict) and "tool_call_id" in message for message in messages):
        return messages
    ordered, start = list(messages), 0
    while start < len(ordered):
        message, start = ordered[start], start + 1
        ids = _ids_of_calls(message)
        end = start
        while end < len(ordered) and isinstance(ordered[end], dict) and str(ordered[end].get("tool_call_id")) in ids:
            end += 1
        given = [ids.index(str(result["tool_call_id"])) for result in ordered[start:end]]
        if len(set(given)) == len(given):
            places = sorted(range(start, end), key=lambda place: given[place - start])
            ordered[start:end] = [ordered[place] for place in places]
        start = end
    return ordered


def _ids_of_calls(message: Any) -> list[str]:
    """Return the ids of a message's tool calls; none if two are equal."""
    try:
        made = listed(message.get("tool_calls")) if isinstance(message, dict) else None
    except ValueError:
        made = None  # reported where calls are read
    ids = (
        [str(call["id"]) for call in made if isinstance(call, dict) and "id" in call] if isinstance(made, list) else []
    )
    return ids if len(set(ids)) == len(ids) else []


def _arguments(function: Mapping[str, Any]) -> str:
    """Return the arguments of a call as JSON; rewritten only if they were no text, or hold an unpaired surrogate."""
    wrong = BadRecord("the arguments of a tool call are not a JSON object")
    given = function.get("arguments")
    arguments = {} if given in (None, "") else _json_of(given, wrong)
    if not isinstance(arguments, dict):
        raise wrong
    is_kept = isinstance(given, str) and given and "\\ud" not in given.lower()
    return given if is_kept else _as_json(arguments, wrong)  # type: ignore[return-value]


def known_of_turn(kind: str) -> frozenset[str]:
    """Return the keys that a message of a role may have besides role and text."""
    return _OF_TOOL_TURNS if kind == "tool" else _OF_TURNS


def tool_name(message: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the name of the tool that a tool turn answers for: its own, or that of the call with its id."""
    name = _only_text(message, _TOOL_NAME, " of a turn")
    return name or names.get(str(message.get("tool_call_id")), "")


def as_json(made: list[dict[str, Any]]) -> str:
    """Return tool calls in the form of a turn."""
    return json.dumps(made, ensure_ascii=False) if made else ""


def _json_of(value: Any, wrong: BadRecord) -> Any:
    try:
        return listed(value)
    except ValueError:
        raise wrong from None


def _as_json(value: Any, wrong: BadRecord) -> str:
    try:
        return halves_replaced(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise wrong from None
