"""Help on the classes of a config and their arguments: ``--schedule.help DMT``."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from sftlab.config import class_named, is_ours, subclasses_of, type_name
from sftlab.nearest import did_you_mean

_WIDTH = 80


def class_help(key: str, name: str, roots: Mapping[str, type]) -> str:
    """Return the help of a class, or of a key's base class with a list of its subclasses.

    Args:
        key: Dotted key of the config: ``schedule``, ``data.abilities``, ``trainer.callbacks``.
        name: Name of the class; empty for the base class of the key.
        roots: The classes of top-level keys.

    Raises:
        ValueError: The key does not hold objects, or no class has that name.
    """
    base = _base_of(key, roots)
    if name:
        chosen = class_named(name, base)
        if chosen is None:
            raise ValueError(_no_such(f"--{key}.help", name, [cls.__name__ for cls in subclasses_of(base)]))
        return help_of(chosen, key)
    others = [cls for cls in subclasses_of(base) if cls is not base and not inspect.isabstract(cls)]
    lines = [help_of(base, key)]
    if others:
        lines += ["", f"Classes for --{key} (--{key}.help NAME tells more):"]
        lines += [
            wrapped_row(f"  {cls.__name__}", summary(cls)) for cls in sorted(others, key=lambda cls: cls.__name__)
        ]
    return "\n".join(lines)


def _base_of(key: str, roots: Mapping[str, type]) -> type:
    """Return the class of the objects that a key holds; ability names and numbers in between may be left out."""
    first, *more = key.split(".")
    if first not in roots:
        raise ValueError(_no_such(f"--{key}.help", first, list(roots)))
    base = roots[first]
    for part in more:
        hints = {name: p.hint for cls in [base, *subclasses_of(base)] for name, p in _parameters(cls).items()}
        if part not in hints:
            continue  # init_args, the name of an ability, a number in a list
        found = [hint for hint in _inside(hints[part]) if is_ours(hint)]
        if not found:
            raise ValueError(f"--{key}.help: {part} is {type_name(hints[part])}, no class")
        base = found[0]
    return base


def _inside(hint: Any) -> Iterator[Any]:
    """Yield a type and all its parts."""
    yield hint
    for part in get_args(hint):
        yield from _inside(part)


class _Parameter(NamedTuple):
    """An argument of a class."""

    hint: Any
    default: Any
    is_required: bool
    words: str


def _parameters(cls: type) -> dict[str, _Parameter]:
    """Return the arguments of a class, following ``**options`` to where they are passed."""
    from jsonargparse import ArgumentParser

    parser, own = ArgumentParser(), inspect.signature(cls).parameters
    try:
        parser.add_class_arguments(cls, "x", fail_untyped=False)
    except ValueError:  # the class is never created from a config
        return {}
    found = {}
    for action in parser._actions:
        name = action.dest.removeprefix("x.")
        if name != action.dest and "." not in name:
            hint = getattr(action, "_typehint", None) or action.type
            words = (action.help or "").replace("``", "")
            is_required = name in own and own[name].default is inspect.Parameter.empty
            found[name] = _Parameter(hint, action.default, is_required, words)
    return found


def help_of(cls: type, key: str) -> str:
    """Return the summary of a class, its class path, and every argument with type, default and description.

    Args:
        cls: The class.
        key: Stands before the name of each argument.
    """
    lines = [textwrap.fill(f"{cls.__name__}: {summary(cls)}", _WIDTH)]
    if not inspect.isabstract(cls):
        lines += [f"class_path: {cls.__name__}, or {cls.__module__}.{cls.__qualname__}"]
    for name, (hint, default, is_required, words) in _parameters(cls).items():
        told = "required" if is_required else f"default {_shown(default)}"
        lines += ["", *_wrapped(f"--{key}.{name}  ({_kind(hint)}; {told})", 2), *_wrapped(words, 6)]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * 6, break_on_hyphens=False)


def _kind(hint: Any) -> str:
    """Return a type in words, without the modules of its parts."""
    text = re.sub(r"[\w.]+\.(\w+)", r"\1", type_name(hint)) if hint is not None else "any"
    text = re.sub(r"^Optional\[(.+)\]$", r"\1 or null", text)
    return re.sub(r"Literal\[(.+?)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), text)


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    made = getattr(default, "class_path", None)
    text = str(made).rpartition(".")[2] if made else str(default)
    return text if len(text) <= 60 else f"{text[:57]}..."


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring in one line."""
    text = cls.__doc__ or inspect.getdoc(vars(cls).get("__init__")) or ""
    return " ".join(text.split("\n\n")[0].replace("``", "").split())


def wrapped_row(start: str, words: str) -> str:
    """Return a name and its description as lines of 80 columns."""
    first = f"{start:<20} "
    return textwrap.fill(words, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def _no_such(where: str, name: str, known: list[str]) -> str:
    hint = did_you_mean(name.rpartition(".")[2], known, f"there are {', '.join(sorted(known))}")
    return f"{where}: there is no {name}; {hint}"
