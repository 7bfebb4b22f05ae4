"""YAML of configs: what PyYAML reads differently from what the author meant is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sftlab.nearest import nearest

Nested = dict[str, Any]
_MOST_BYTES, _MOST_VALUES, _MOST_DEPTH = 10_000_000, 100_000, 100
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]*[0-7]|[1-9][\d_]*(:[0-5]?\d)+(\.\d*)?)\Z")
"""Numbers that YAML 1.1 reads in base 8 or 60."""


def read_yaml(path: Path, asked_by: str) -> Nested:
    """Read the keys and values of a YAML file; ``asked_by`` begins the message about a bad one.

    Raises:
        ValueError: The file is missing or is not a YAML mapping.
    """
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; did you mean {path.parent / near}?" if near else ""
        raise ValueError(f"{asked_by}: there is no file {path}{hint}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader) or {}
        _check_size(content)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{asked_by}: {path} is not valid YAML: {why}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{asked_by}: {path} must hold keys and values, not a {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """A loader that refuses duplicate keys and numbers such as 010 (8) and 1:30 (90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number in base 10, and refuse 010, which YAML 1.1 reads in base 8, and 1:30, in base 60."""
        kind, text = node.tag.rpartition(":")[2], node.value
        made: int | float = getattr(super(), f"construct_yaml_{kind}")(node)
        if OTHER_BASE.match(text):
            base = 60 if ":" in text else 8
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{text} is the number {made} in base {base}: write that, or put a text in quotes",
                node.start_mark,
            )
        return made


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
# PyYAML follows YAML 1.1, in which 1e-3 is a text: a factor would have texts as values.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z"), list("-+0123456789")
)


def _check_size(content: Any) -> None:
    """Refuse excessive expansion by anchors and excessive nesting.

    Raises:
        ValueError: There are too many values, or they are nested too deeply.
    """
    num_values, row, depth = 0, [content], 0
    while row:
        num_values, depth = num_values + len(row), depth + 1
        if num_values > _MOST_VALUES or depth > _MOST_DEPTH:
            raise ValueError(
                f"it holds more than {_MOST_VALUES:,} values, or they are nested more than {_MOST_DEPTH} deep"
            )
        row = [
            inner
            for value in row
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]


def scalar(value: str) -> Any:
    """Return a value of the command line as YAML reads it."""
    try:
        return yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
