"""Finds all problems of a config at once: unknown keys and classes, wrong types, each with the nearest valid name.

jsonargparse stops at the first problem. This module checks the whole config (files and command line merged) before it,
using jsonargparse's own reading of signatures and types.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from sftlab.credentials import find_credentials, mask
from sftlab.foreign import called_here
from sftlab.nearest import did_you_mean
from sftlab.yaml_files import OTHER_BASE, Nested, read_yaml, scalar

T = TypeVar("T")


def merged_config(arguments: list[str]) -> Nested:
    """Merge the config files and dotted options of a command line, in order.

    Raises:
        ValueError: A file is missing or is not a YAML mapping.
    """
    merged: Nested = {}
    for name, value in option_pairs(arguments):
        if name in ("config", "c"):
            merge_config(merged, read_yaml(Path(value), "--config"))
        elif not name.endswith("+"):
            set_key(merged, name.split("."), scalar(value))
    return merged


def option_pairs(arguments: list[str]) -> Iterable[tuple[str, str]]:
    """Names and values of the options of a command line: ``--name value`` and ``--name=value``."""
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and position < len(arguments) and not arguments[position].startswith("--"):
            value, position = arguments[position], position + 1
        yield name, value


def config_files(arguments: list[str]) -> list[str]:
    """The config files of a command line, in order."""
    return [value for name, value in option_pairs(arguments) if name in ("config", "c")]


def merge_config(into: Nested, other: Nested) -> None:
    """Merge a config into another. If it names another class, the arguments of the old one are dropped."""
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(into.get(key), dict)
        if both and value.get("class_path", into[key].get("class_path")) == into[key].get("class_path"):
            merge_config(into[key], value)
        else:
            into[key] = value


def set_key(config: Nested, keys: list[str], value: Any) -> None:
    """Set a dotted key as on the command line: init_args may be left out, and a class name may be given alone."""
    for key in keys[:-1]:
        inner = config.setdefault(key, {})
        if isinstance(inner, str):
            inner = config[key] = {"class_path": inner}
        if not isinstance(inner, dict):
            return
        config = inner
        if "class_path" in config and keys[keys.index(key) + 1] not in ("class_path", "init_args"):
            config = config.setdefault("init_args", {})
    config[keys[-1]] = value


def find_problems(config: Mapping[str, Any], roots: Mapping[str, type], plain: Iterable[str]) -> list[str]:
    """Return all problems of a config, one message each.

    Args:
        config: As returned by ``merged_config``.
        roots: The classes of top-level keys; abstract ones are chosen by class_path.
        plain: Other valid top-level keys.
    """
    found: list[str] = list(find_credentials(config))
    for key, value in config.items():
        if key in roots:
            found += _node(key, roots[key], value)
        elif key not in plain:
            found.append(_unknown(key, "key", [*roots, *plain]))
    return found


def _node(path: str, base: type, value: Any) -> list[str]:
    """Return problems of a value that represents an object of ``base`` or a subclass."""
    if isinstance(value, str) and not value.startswith("${"):
        value = {"class_path": value}
    if not isinstance(value, dict):
        return [] if value is None else [f"{path}: give keys and values, not {value!r}"]
    if "class_path" not in value:
        return [f"{path}: give a class_path"] if inspect.isabstract(base) else _arguments(path, base, value)
    found = [_unknown(f"{path}.{key}", "key", ["class_path", "init_args"]) for key in value if key not in _CLASS_KEYS]
    chosen = class_named(str(value["class_path"]), base)
    if chosen is None:
        names = {cls.__name__ for cls in subclasses_of(base)}
        return [*found, _unknown(f"{path}.class_path: {value['class_path']}", base.__name__, sorted(names))]
    arguments = value.get("init_args") or {}
    found += _arguments(path, chosen, arguments)
    found += _beside(path, chosen, value.get("dict_kwargs") or {})
    if not found and getattr(chosen, "is_checked_by_building", False) and "${" not in str(arguments):
        try:
            build(path, chosen, arguments)
        except ValueError as error:
            found.append(str(error))
    return found


def _beside(path: str, cls: type, given: Mapping[str, Any]) -> list[str]:
    """Return the part of ``dict_kwargs`` that a class does not accept: it is for classes with ``**options``."""
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(cls).parameters.values())
    return (
        []
        if takes_any
        else [_unknown(f"{path}.{key}", f"key of {cls.__name__}", list(parameter_types(cls))) for key in given]
    )


def build(where: str, cls: type[T], values: Mapping[str, Any]) -> T:
    """Build an object of a class from arguments of a config or a command line.

    Args:
        where: Prefix of the arguments in messages, such as ``--gsm8k``.
        cls: The class.
        values: Its arguments; strings are converted to the types of the parameters.

    Raises:
        ValueError: Arguments are unknown, of a wrong type or refused; lists all of them.
    """
    if found := _arguments(where, cls, values):
        raise ValueError("\n  ".join(found))
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "made")
    try:
        made: T = parser.instantiate(parser.parse_object({"made": dict(values)})).made
    except ArgumentError as error:
        raise ValueError(f"{where}: {' '.join(mask(str(error), urls=True).split())}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return made


def build_chosen(where: str, base: type[T], value: Any) -> T:
    """Build an object of ``base`` or a subclass from a class name, or class_path and init_args; pass objects through.

    Raises:
        ValueError: There is no such class, or it refuses its arguments.
    """
    if isinstance(value, base):
        return value
    if found := _node(where, base, value):
        raise ValueError("\n  ".join(found))
    given: Mapping[str, Any] = {"class_path": value} if isinstance(value, str) else value
    cls = class_named(str(given.get("class_path", base.__name__)), base)
    assert cls is not None
    return build(where, cls, given.get("init_args") or {})


_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_CALLBACK = "lightning.pytorch.callbacks.callback.Callback"  # by name: this module needs no torch


def class_named(name: str, base: type) -> type | None:
    """Return the subclass of ``base`` with a short or dotted name; None if there is none."""
    known = {cls.__name__: cls for cls in subclasses_of(base)}
    if "." not in name:
        return known.get(name)
    found = named_object(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def named_object(name: str) -> Any:
    """Return the object with a dotted name, also looked for in the working folder; None if there is none.

    Raises:
        ValueError: The module exists but cannot be imported.
    """
    module, _, attribute = name.rpartition(".")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # the command sftlab starts without the working folder, python -m sftlab with it
    try:
        return getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise ValueError(f"class_path {name}: {module} does not import: {error}") from None
    except (Exception, SystemExit) as error:  # a script without a main guard may exit when imported
        raise ValueError(f"class_path {name}: {module} does not import: {type(error).__name__}: {error}") from None


def subclasses_of(base: type) -> list[type]:
    """Return all imported subclasses, with ``base`` itself first if it is not abstract."""
    children: list[type] = base.__subclasses__()
    nested = [cls for child in children for cls in subclasses_of(child)]
    return [*([] if inspect.isabstract(base) else [base]), *nested]


@functools.cache
def parameter_types(cls: type) -> dict[str, Any]:
    """Return types of a class's init arguments by name, including those that ``**options`` are passed on to."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    actions = {a.dest.removeprefix("x."): getattr(a, "_typehint", None) for a in parser._actions if "x." in a.dest}
    return {name.split(".")[0]: hint if "." not in name else None for name, hint in actions.items()}


def _arguments(path: str, cls: type, values: Mapping[str, Any]) -> list[str]:
    found, types = [], parameter_types(cls)
    if not isinstance(values, Mapping):
        return [f"{path}: give keys and values, not {values!r}"]
    for key, value in values.items():
        where = f"{path}.{key}"
        if key not in types:
            found.append(_unknown(where, f"key of {cls.__name__}", list(types)))
        else:
            found += _value(where, types[key], value)
    return found


def _value(path: str, hint: Any, value: Any) -> list[str]:
    """Return problems of one value; objects, lists and dictionaries are walked, other values checked as a whole."""
    hints = (hint, *get_args(hint))
    items = {get_origin(h): cls for h in hints for cls in get_args(h) if is_ours(cls)}
    if isinstance(value, dict) and dict in items:
        odd = [
            f"{path}: the key {name!r} is not text; write it in quotes" for name in value if not isinstance(name, str)
        ]
        return odd or [
            problem for name, item in value.items() for problem in _node(f"{path}.{name}", items[dict], item)
        ]
    if isinstance(value, list) and list in items:
        return [problem for i, item in enumerate(value) for problem in _node(f"{path}.{i}", items[list], item)]
    classes = [h for h in hints if is_ours(h)]
    if isinstance(value, dict) and "class_path" not in value and any(_is_callback(h) for h in classes):
        return []  # options on the command line of callbacks that --trainer.callbacks+= adds
    if classes and isinstance(value, (dict, str)) and get_origin(hint) not in (dict, list):
        return _node(path, classes[0], value)
    if hint is None or "${" in str(value) or "class_path" in str(value):
        return []
    if found := _misread(path, hint, value):
        return found
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return [f"{path}: {value!r} is not of type {type_name(hint)}"]
    return []


def _misread(path: str, hint: Any, value: Any) -> list[str]:
    """Report texts that would be misread: numbers of the command line in another base, None as a word."""
    if isinstance(value, dict):
        inner = next((get_args(h)[1] for h in (hint, *get_args(hint)) if get_origin(h) is dict), None)
        return [problem for key, one in value.items() for problem in _misread(f"{path}.{key}", inner, one)]
    hints = (hint, *get_args(hint))
    if not isinstance(value, str) or _takes_any(hints):
        return []
    if str in hints:
        is_none = value.strip().lower() == "none" and type(None) in hints
        return [f"{path}: {value!r} is a text here; write null, or leave it out, for nothing"] if is_none else []
    return [f"{path}: {value!r} is read in base 8 or 60; write the number itself"] if OTHER_BASE.match(value) else []


def _takes_any(hints: Iterable[Any]) -> bool:
    """Return whether one of some types accepts any value."""
    return Any in hints or None in hints


def is_ours(hint: Any) -> bool:
    """Return whether a type is a class that configs build objects of."""
    return isinstance(hint, type) and (hint.__module__.startswith("sftlab.") or _is_callback(hint))


def _is_callback(hint: Any) -> bool:
    return isinstance(hint, type) and f"{hint.__module__}.{hint.__name__}" == _CALLBACK


def type_name(hint: Any) -> str:
    """Return a readable name of a type."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace(" | None", " or null")


def _unknown(path: str, what: str, valid: list[str]) -> str:
    wrong = path.rsplit(": ", 1)[-1].rsplit(".", 1)[-1]
    more = f" and {len(valid) - 12} more" if len(valid) > 12 else ""
    hint = did_you_mean(wrong, valid, f"there are {', '.join(valid[:12])}{more}", cutoff=0.5)
    if what.startswith("key") and not path.startswith("--"):
        hint = called_here(wrong) or hint
    return f"{path}: no such {what}; {hint}"


def lacking_parts(config: Mapping[str, Any]) -> list[str]:
    """Return the missing keys without which a config of fit cannot work."""
    if "data" in config and "schedule" in config:
        return []
    return ["a config needs data and schedule: start from one that comes with sftlab: --config sftlab:dmt"]


_MARKS = {"model_name_or_path": "LLaMA-Factory or TRL", "base_model": "axolotl"}


def of_another_tool(config: Mapping[str, Any]) -> str:
    """Return a message if a config was written for another tool, whose keys would each be an error; else nothing."""
    for key, tool in _MARKS.items():
        if key in config and not {"data", "schedule", "model", "trainer"} & config.keys():
            told = [
                called_here(name, str(value)) or f"{name}: no option that is known" for name, value in config.items()
            ]
            lines = "".join(f"\n    {line.replace(' of other tools', '')}" for line in told)
            return f"{key}: this is a config of {tool}; its options are listed in sftlab docs coming-from:{lines}"
    return ""
