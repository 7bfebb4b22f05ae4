"""Messages: turns in the form that chat templates expect, with marks that separate contents from template text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

from sftlab.data.conversation import BadRecord, Turn

THINK = ("<think>", "</think>")  # what most tokenizers put around reasoning


class Marks(NamedTuple):
    """Two characters that no content of a conversation contains.

    Attributes:
        broken: Inserted into the names of special tokens in contents.
        content_end: Inserted at the end of one turn's content.
    """

    broken: str
    content_end: str

    @classmethod
    def of(cls, turns: Sequence[Turn], tools: str) -> Marks:
        """Choose marks for a conversation from the private-use characters."""
        used = set(tools).union(*(f"{turn.text}{turn.reasoning}{turn.calls}{turn.name}" for turn in turns))
        private = chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
        free = (chr(code) for code in private if chr(code) not in used)
        return cls(next(free), next(free))


@dataclass
class MessageForm:
    """How a chat template expects its messages.

    Attributes:
        special: Matches the names that are broken in contents.
        reasoning: field, if the template has one for it; inline, as part of the text; none, left out.
        arguments_as_text: Whether arguments of tool calls are JSON text, not an object.
    """

    special: re.Pattern[str]
    reasoning: Literal["field", "inline", "none"] = "field"
    arguments_as_text: bool = False

    def broken(self, marks: Marks | None) -> Callable[[str], str]:
        """Return a function that breaks the names of special tokens in a content; without marks it changes nothing."""
        if marks is None:
            return lambda text: text
        return lambda text: self.special.sub(lambda m: "".join(c + marks.broken for c in m.group()), text)

    def tools(self, tools: str, marks: Marks | None) -> list[Any] | None:
        """Return the available tools.

        Raises:
            BadRecord: The tools are not a list of objects.
        """
        if not tools:
            return None
        try:
            offered = _walked(json.loads(tools), self.broken(marks))
        except (ValueError, RecursionError):
            offered = None
        if not isinstance(offered, list) or not all(isinstance(tool, dict) for tool in offered):
            raise BadRecord("tools that are not a list of objects", tools[:80])
        return offered

    def messages(self, turns: Sequence[Turn], marks: Marks | None, until: int | None = None) -> list[dict[str, Any]]:
        """Return one message per turn; ``until`` is the turn whose content gets a mark at its end.

        Raises:
            BadRecord: Tool calls are not of OpenAI's form.
        """
        broken, waiting = self.broken(marks), list[dict[str, Any]]()
        messages = []
        for number, turn in enumerate(turns):
            calls = self._calls(turn)
            text, reasoning = self._said(turn)
            if marks is not None and number == until:
                text, reasoning = _ended(text, reasoning, calls, marks.content_end)
            message: dict[str, Any] = {"role": turn.role, "content": broken(text)}
            if reasoning:  # templates use two names for it
                message |= {"reasoning_content": broken(reasoning), "thinking": broken(reasoning)}
            if calls:
                message["tool_calls"], waiting = _walked(calls, broken), list(calls)
            if turn.role == "tool":
                message |= _walked(_answered(turn, waiting), broken)
            messages.append(message)
        return messages

    def _said(self, turn: Turn) -> tuple[str, str]:
        """Return text and reasoning, each in the template's field for it."""
        if self.reasoning == "field" or not turn.reasoning:
            return turn.text, turn.reasoning
        inline = f"{THINK[0]}\n{turn.reasoning}\n{THINK[1]}\n\n{turn.text}"
        return inline if self.reasoning == "inline" else turn.text, ""

    def _calls(self, turn: Turn) -> list[dict[str, Any]]:
        try:
            calls = json.loads(turn.calls) if turn.calls else []
            for call in calls:
                function = call["function"]
                arguments = function.get("arguments", {})
                if self.arguments_as_text and not isinstance(arguments, str):
                    function["arguments"] = json.dumps(arguments, ensure_ascii=False)
                elif isinstance(arguments, str) and not self.arguments_as_text:
                    function["arguments"] = json.loads(arguments or "{}")
                function["name"] = str(function["name"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BadRecord("tool calls that are not of OpenAI's form", turn.calls[:80]) from None
        return list(calls)


def _ended(text: str, reasoning: str, calls: list[dict[str, Any]], mark: str) -> tuple[str, str]:
    """Add a mark after what a template writes last: text, reasoning, or the last tool call's name."""
    if calls:
        calls[-1]["function"]["name"] += mark
    elif text.strip() or not reasoning.strip():
        end = len(text.rstrip())
        text = text[:end] + mark + text[end:]
    else:
        reasoning = reasoning.rstrip() + mark
    return text, reasoning


def _answered(turn: Turn, waiting: list[dict[str, Any]]) -> dict[str, str]:
    """Return name and id of the call that a tool turn answers: the first waiting one of its name, else the first."""
    named = [call for call in waiting if call["function"]["name"] == turn.name] or waiting[:1]
    if not named:
        return {"name": turn.name} if turn.name else {}
    waiting.remove(named[0])
    ids = {"tool_call_id": str(named[0]["id"])} if "id" in named[0] else {}
    return {"name": turn.name or named[0]["function"]["name"], **ids}


def _walked(value: Any, change: Callable[[str], str]) -> Any:
    """Return JSON with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _walked(item, change) for key, item in value.items()}
    return [_walked(item, change) for item in value] if isinstance(value, list) else value
