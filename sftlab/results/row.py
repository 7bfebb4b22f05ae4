"""Lines of results files as dataclasses, checked when they are read."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def checked(kind: type[T], row: object, place: str) -> T:
    """Build a dataclass from a row; unknown keys are ignored.

    JSON has no nan: where a field may be None, a number that is not finite becomes None.

    Args:
        kind: The dataclass. Its fields may be strings, numbers, bools, tuples of one type, dicts, and unions of these.
        row: The content of a line.
        place: File and line, for the message.

    Raises:
        ValueError: The row is not an object, a field without a default is missing, or one is of a wrong type.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: not an object with fields")
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in row:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{place}: {field.name} is missing")
            continue
        value, hint = row[field.name], hints[field.name]
        if isinstance(value, float) and not math.isfinite(value) and type(None) in get_args(hint):
            value = None
        if not _fits(value, hint):
            raise ValueError(f"{place}: {field.name} is {value!r:.80}, not {_name(hint)}")
        values[field.name] = tuple(value) if get_origin(hint) is tuple else value
    return kind(**values)


def read_objects(path: Path) -> Iterator[tuple[object, str]]:
    """The content and the place of each line of a JSON-lines file that is not blank.

    Raises:
        ValueError: A line is not JSON.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: not JSON ({error})") from None
            yield row, place


def finite(value: float | None) -> float | None:
    """A number for JSON: None if it is not finite."""
    return None if value is None or not math.isfinite(value) else value


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(part, inner) for part in value)
    kind = get_origin(hint) or hint
    if isinstance(value, bool):
        return kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, kind)


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
