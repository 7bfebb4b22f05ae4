"""JSON records: lines, or the elements of a list, decoded one by one.

Where the standard is open: a duplicate key makes a bad record (which value is meant?), and so does nesting beyond
``MAX_DEPTH``; NaN and Infinity are read as numbers; integers too long to be read exactly become the nearest float; only
white space may follow a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftlab.data.stream import MAX_RECORD, BrokenRecord, text_blocks, text_lines

MAX_DEPTH = 200  # nested lists and dictionaries
_MAX_DIGITS = 1000
_SPACE = " \t\n\r"
_MARK = "\ufeff"  # a byte order mark: concatenated files have it inside
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)  # a string may be cut by the end
_SPACES = re.compile(r"[ \t\n\r]*")


class _Refused(Exception):
    """A value that is valid JSON but no record; not a ValueError, which means invalid JSON."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {shortened(twice)} is there twice")
    return found


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int)


def shortened(text: object) -> str:
    """Shorten a text from data for a message."""
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: It is not JSON, or this module's rules refuse it.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    if _is_deep(text, 0, len(text), value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"lists and dictionaries are nested more than {MAX_DEPTH} deep"


def _is_deep(text: str, start: int, end: int, value: Any) -> bool:
    """Return whether a value is nested too deeply; texts with few brackets need no check."""
    return text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and is_deeper(value, MAX_DEPTH)


def is_deeper(value: Any, most: int) -> bool:
    """Return whether lists and dictionaries are nested more than ``most`` deep."""
    level = [value]
    for _ in range(most):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for items in inner for item in items]
    return any(isinstance(item, (dict, list)) for item in level)


def json_lines(file: Path) -> Iterator[Any]:
    """Yield the records of a file of JSON lines; an invalid line is one ``BrokenRecord``, a blank one is skipped.

    Raises:
        ValueError: The file cannot be read.
    """
    for number, line in enumerate(text_lines(file), start=1):
        try:
            yield parse_json(line.lstrip(_MARK))
        except ValueError as error:
            yield from _broken_line(line.lstrip(_MARK), f"line {number:,} is not JSON: {error}")


def _broken_line(line: str, reason: str) -> Iterator[Any]:
    """Yield the records of a line that is not JSON: none, several (old Macs end lines with CR alone) or a bad one."""
    if not line.strip(_SPACE):
        return
    parts = [_parsed(part.lstrip(_MARK)) for part in line.split("\r") if part.strip(_SPACE + _MARK)]
    if all(isinstance(part, BrokenRecord) for part in parts):
        yield BrokenRecord(reason)
    else:
        yield from parts


def _parsed(part: str) -> Any:
    try:
        return parse_json(part)
    except ValueError as error:
        return BrokenRecord(f"between two carriage returns there is no JSON: {error}")


class _Window:
    """A window that slides over the text of a file; ``position`` is the current place in it."""

    def __init__(self, file: Path) -> None:
        self.file, self.blocks = file, text_blocks(file)
        self.text, self.position, self.lines_before = "", 0, 0

    def more(self) -> bool:
        """Double the window, so that a long element costs its length, not its square."""
        parts, size = [self.text[self.position :]], 0
        for block in self.blocks:
            parts.append(block)
            size += len(block)
            if size >= max(1, len(parts[0])):
                break
        if not size:
            return False
        self.lines_before += self.text.count("\n", 0, self.position)
        self.text, self.position = "".join(parts), 0
        if len(self.text) > 2 * MAX_RECORD:
            raise ValueError(f"{self.where(0)}: an element of the list is longer than {MAX_RECORD:,} characters")
        return True

    def next(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            self.position = _SPACES.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def where(self, position: int) -> str:
        """Return file, line and column of a position in the window."""
        line = self.lines_before + self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        return f"{self.file}, line {line:,}, column {column:,}" if line > 1 else f"{self.file}, character {column:,}"


def json_list(file: Path) -> Iterator[Any]:
    """Yield the elements of a top-level list; one that is valid JSON but no record is a ``BrokenRecord``.

    Raises:
        ValueError: The file cannot be read or is not a list; the message says where it breaks.
    """
    window = _Window(file)
    if window.next() != "[":
        raise ValueError(f"{file}: a .json file must hold a list of records; one record per line is .jsonl")
    window.position += 1
    following = window.next()
    while following != "]":
        yield _element(window)
        following = window.next()
        if following == ",":
            window.position += 1
            if window.next() == "]":
                raise ValueError(f"{window.where(window.position)}: a comma, and no element after it")
        elif following and following != "]":
            raise ValueError(f"{window.where(window.position)}: not JSON: a comma or the end of the list is missing")
        elif not following:
            raise _truncated(file)
    window.position += 1
    if window.next():
        rest = window.text[window.position : window.position + 20]
        raise ValueError(
            f"{window.where(window.position)}: more follows after the end of the list: {rest!r}; a .json file holds "
            "one list (one record per line is .jsonl)"
        )


def _element(window: _Window) -> Any:
    """Return the element at the window's position, or a stand-in for it, and move the position behind it."""
    while True:
        if not window.next():
            raise _truncated(window.file)
        try:
            record, end = _DECODER.raw_decode(window.text, window.position)
        except (RecursionError, _Refused) as error:
            reason = _TOO_DEEP if isinstance(error, RecursionError) else str(error)
            record, end = BrokenRecord(f"{window.where(window.position)}: {reason}"), _end_of_value(window)
        except json.JSONDecodeError as error:
            open_end = error.msg.startswith("Unterminated")
            if (open_end or error.pos > len(window.text) - 16) and window.more():
                continue
            if open_end or not window.text[error.pos :].strip(_SPACE):
                raise _truncated(window.file) from None
            raise ValueError(f"{window.where(error.pos)}: not JSON: {error.msg}") from None
        # A number at the end of the window may continue behind it.
        if end == len(window.text) and isinstance(record, (int, float)) and window.more():
            continue
        if _is_deep(window.text, window.position, end, record):
            record = BrokenRecord(f"{window.where(window.position)}: {_TOO_DEEP}")
        window.position = end
        return record


def _end_of_value(window: _Window) -> int:
    """Return where the list or dictionary at the window's position ends."""
    while True:
        depth = 0
        for match in _BRACKETS.finditer(window.text, window.position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return match.end()
        if not window.more():
            raise _truncated(window.file)


def _truncated(file: Path) -> ValueError:
    return ValueError(f"{file}: the file ends at byte {file.stat().st_size:,} inside the list: truncated?")
