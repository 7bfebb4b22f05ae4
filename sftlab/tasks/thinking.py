"""Cuts a model's thinking out of what it said: drafts are not answers, and a judge's reasoning is not its rating."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think"
_OPEN = rf"(?:<({_NAMES})>|\[THINK\]|<\|begin_of_thought\|>)"
_CLOSE = rf"(?:</(?:{_NAMES})>|\[/THINK\]|<\|end_of_thought\|>)"
_BLOCK = re.compile(rf"{_OPEN}.*?{_CLOSE}", re.S | re.I)
_UNTIL_CLOSED = re.compile(rf".*{_CLOSE}", re.S | re.I)
_LEFT_OPEN = re.compile(rf"^[ \t]*{_OPEN}.*\Z", re.S | re.I | re.M)


def without_thinking(text: str) -> str:
    """The text without its thinking, as ``<think> ... </think>`` and the like.

    Where only the end is marked (the prompt ended in ``<think>``), all before it is thinking; where a beginning at the
    start of a line is never closed (cut at the limit of tokens), all after it is.
    """
    text = _BLOCK.sub("", text)
    text = _UNTIL_CLOSED.sub("", text, count=1)
    return _LEFT_OPEN.sub("", text, count=1)
