"""The marks that models put around their reasoning, as texts and as special tokens."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis|seed:think|longcat_think"
BEGINS = (
    rf"<(?:{_NAMES})>",
    r"\[THINK\]",  # Magistral
    r"<\|begin_of_thought\|>",
    r"<\|think(?:ing)?(?::start|_start)\|>",  # Solar Open
    r"<\|START_THINKING\|>",  # Command A
    r"<\|inner_prefix\|>",  # Apertus
    r"\u25c1think\u25b7",  # Kimi-VL
    r"<\|channel>\w*",  # Gemma 4
    r"(?:<\|start\|>)?(?:assistant)?<\|channel\|>(?:analysis|commentary)[^<\n]*<\|message\|>",  # gpt-oss
)
"""Patterns of tokens that begin reasoning."""
ENDS = (
    rf"</(?:{_NAMES})>",
    r"\[/THINK\]",
    r"<\|end_of_thought\|>",
    r"<\|think(?:ing)?(?::end|_end)\|>",
    r"<\|END_THINKING\|>",
    r"<\|inner_suffix\|>",
    r"\u25c1/think\u25b7",
    r"<channel\|>",
    r"(?:<\|end\|>)?(?:<\|start\|>)?(?:assistant)?<\|channel\|>final[^<\n]*<\|message\|>",
)
"""Patterns of tokens that end reasoning."""
_TOKENS = re.compile("|".join([*BEGINS, *ENDS, r"<\|channel\|>", r"<\|message\|>"]))


def marks_thinking(token: str) -> bool:
    """Return whether a special token is such a mark, or a part of one."""
    return _TOKENS.fullmatch(token) is not None
