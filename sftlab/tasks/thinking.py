"""Removes a model's thinking from its text: drafts are not answers, and a judge's reasoning is not its rating.

The rule has versions, because scores depend on it: newer rules use ``without_thinking``, and ``without_thinking_1``
remains for ``auto@2``.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

from sftlab.data.marks import BEGINS, ENDS

_NAMES_1 = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think"
_OPEN_1 = rf"(?:<({_NAMES_1})>|\[THINK\]|<\|begin_of_thought\|>)"
_CLOSE_1 = rf"(?:</(?:{_NAMES_1})>|\[/THINK\]|<\|end_of_thought\|>)"
_BLOCK_1 = re.compile(rf"{_OPEN_1}.*?{_CLOSE_1}", re.S | re.I)
_UNTIL_CLOSED_1 = re.compile(rf".*{_CLOSE_1}", re.S | re.I)
_LEFT_OPEN_1 = re.compile(rf"^[ \t]*{_OPEN_1}.*\Z", re.S | re.I | re.M)

_MARK = re.compile(rf"(?P<begins>{'|'.join(BEGINS)})|{'|'.join(ENDS)}", re.I)
FENCE_LINE = re.compile(r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<tag>[\w.+-]*)[^\n]*\n?", re.M)
"""A line that begins or ends a fenced block."""
_MAX_TRIES = 20  # lines to try as the end of one block


def without_thinking_1(text: str) -> str:
    """Return the text without thinking marked by ``<think> ... </think>`` and the like, anywhere in the text."""
    text = _BLOCK_1.sub("", text)
    text = _UNTIL_CLOSED_1.sub("", text, count=1)
    return _LEFT_OPEN_1.sub("", text, count=1)


def without_thinking(text: str) -> str:
    """Return the text without thinking, using the marks of ``sftlab.data.marks``.

    Where only the end is marked (the prompt ended in ``<think>``), all before it is thinking; where a beginning at the
    start of a line is never closed (cut at the limit of tokens), all after it is. A mark in quotes, or inside a block
    of code that is Python with it, is a part of what is said.
    """
    marks = list(_MARK.finditer(text))
    if not marks or _is_code(text):
        return text
    blocks = [(start, end) for start, end, code, _ in fenced_blocks(text) if _is_code(code)]
    kept, place, opened = "", 0, None
    for mark in marks:
        at = mark.start()
        if any(start <= at < end for start, end in blocks) or _is_quoted(text, mark):
            continue
        if mark["begins"] is None:
            kept = kept if opened is not None else ""
            place, opened = mark.end(), None
        elif opened is None:
            kept, opened = kept + text[place:at], mark
    if opened is None:
        return kept + text[place:]
    is_at_start = not text[text.rfind("\n", 0, opened.start()) + 1 : opened.start()].strip()
    return kept + (text[opened.start() :] if not is_at_start else "")


def _is_code(text: str) -> bool:
    """Return whether a text is Python with marks only in strings and comments."""
    return is_python(_MARK.sub("\u25c1", textwrap.dedent(text)))


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    """Return whether a mark is between two quotes of one kind on its line; apostrophes inside words do not count."""
    end = text.find("\n", mark.end())
    places = _quotes(text, text.rfind("\n", 0, mark.start()) + 1, end if end >= 0 else len(text))
    return any(of_kind and bisect_left(of_kind, mark.start()) % 2 and of_kind[-1] >= mark.end() for of_kind in places)


@lru_cache(maxsize=1)  # a line may have thousands of marks
def _quotes(text: str, start: int, end: int) -> list[list[int]]:
    """Return the positions of quotes of each kind on a line."""
    kinds = (r"(?<!`)`(?!`)", '"', r"(?<!\w)'|'(?!\w)")
    return [[one.start() for one in re.compile(kind).finditer(text, start, end)] for kind in kinds]


def fenced_blocks(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Return fenced blocks, in order: span of the code, the code without common indentation, its language.

    A block of Python ends at the first line of its fence up to which it is Python, so that a fence in a docstring is
    code; where there is none, and in other languages, at the first such line. The last may lack its end.
    """
    place = 0
    while (opening := FENCE_LINE.search(text, place)) is not None:
        ends = [one for one in FENCE_LINE.finditer(text, opening.end()) if one["fence"].startswith(opening["fence"])]
        codes = [textwrap.dedent(text[opening.end() : one.start()]) for one in ends[:_MAX_TRIES]]
        may_be_python = opening["tag"].lower() in PYTHON_TAGS
        whole = next((i for i, code in enumerate(codes) if may_be_python and is_python(code)), 0)
        end, place = (ends[whole].start(), ends[whole].end()) if ends else (len(text), len(text))
        code = codes[whole] if codes else textwrap.dedent(text[opening.end() :])
        yield opening.end(), end, code, opening["tag"].lower()


PYTHON_TAGS = ("", "python", "python3", "py")
"""Languages of blocks that may be Python."""


def is_python(code: str) -> bool:
    """Return whether a text is statements of Python, and not blank."""
    return bool(code.strip()) and error_line(code) is None


def error_line(source: str) -> int | None:
    """Return the number of the first line that does not parse, from 1; None if all of the source parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, RecursionError, MemoryError):
            return 1
    return None
