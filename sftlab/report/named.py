"""The figures that a study file names, as objects: by short name, by class name, or by class path.

figures: [k, {class_path: SingleAgainstMixed, init_args: {single: alone}}, my_figures.Ladder]
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sftlab.nearest import did_you_mean
from sftlab.report.section import Figure

FIGURES = {
    "scaling": "scaling.Scaling",
    "single_against_mixed": "single_against_mixed.SingleAgainstMixed",
    "conflict": "conflict.Conflict",
    "ratio": "ratio.Ratio",
    "k": "curve.ReplayFraction",
    "curve": "curve.Curve",
    "strategies": "strategies.Strategies",
    "equal_count": "equal_count.EqualCount",
    "leave_one_out": "leave_one_out.LeaveOneOut",
    "setting": "setting.BestSetting",
    "forgetting": "forgetting.Forgetting",
    "cost": "cost.Cost",
    "search": "search.Search",
}
"""Module and class of each figure in ``sections``, by its short name."""
_CLASSES = {place.split(".")[1]: place for place in FIGURES.values()}


def figures_of(
    entries: object, where: str, configs: Collection[str] | None = None, factors: Collection[str] | None = None
) -> list[Figure]:
    """Create the figures of a study file.

    Args:
        entries: The value of ``figures``.
        where: File and key, for messages.
        configs: Configs of the study, to check the names in arguments; unchecked if None.
        factors: Factors of the study, likewise.

    Raises:
        ValueError: An entry names an unknown figure, argument, config or factor.
    """
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where}: give a list such as [scaling, k], not {entries!r:.80}")
    found = []
    for entry in entries:
        name, arguments = _parts(entry, where)
        kind = _class(name, where)
        place = f"{where}, {name}"
        _check_arguments(kind, arguments, place)
        for known, wanted, what in (
            (configs, kind.config_arguments, "config"),
            (factors, kind.factor_arguments, "factor"),
        ):
            for argument in wanted if known is not None else ():
                _check_names(arguments.get(argument), known or (), f"{place}, {argument}", what)
        try:
            found.append(kind(**arguments))
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{place}: {type(error).__name__}: {error}") from None
    return found


def _parts(entry: object, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    known = {"class_path", "init_args"}
    if isinstance(entry, Mapping) and isinstance(entry.get("class_path"), str) and set(entry) <= known:
        arguments = entry.get("init_args") or {}
        if isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments):
            return entry["class_path"], dict(arguments)
    raise ValueError(
        f"{where}: {entry!r:.80} is not a figure; write a name such as k, or class_path and init_args: "
        "{class_path: SingleAgainstMixed, init_args: {single: alone}}"
    )


def _class(name: str, where: str) -> type[Figure]:
    place = FIGURES.get(name) or _CLASSES.get(name)
    if place:
        module, _, attribute = place.partition(".")
        found: type[Figure] = getattr(import_module(f"sftlab.report.sections.{module}"), attribute)
        return found
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"{where}: there is no {name!r}; {_nearest(name, [*FIGURES, *_CLASSES], FIGURES)}")
    if not re.fullmatch(r"[\w.]+", name) or ".." in name:
        raise ValueError(f"{where}: {name!r} is not a class path such as my_figures.Ladder")
    try:
        kind = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"{where}: {name}: there is no module {error.name}") from None
    except AttributeError:
        there = [n for n, v in vars(import_module(module)).items() if inspect.isclass(v) and issubclass(v, Figure)]
        raise ValueError(f"{where}: {module} has no {attribute}; {_nearest(attribute, there, there)}") from None
    except Exception as error:  # a user's file may raise anything when it is imported
        raise ValueError(f"{where}: {module} cannot be imported: {type(error).__name__}: {error}") from None
    if not inspect.isclass(kind) or not issubclass(kind, Figure) or inspect.isabstract(kind):
        raise ValueError(f"{where}: {name} is not a figure: derive it from sftlab.Figure and write its section()")
    return kind


def _check_arguments(kind: type[Figure], arguments: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(kind).parameters
    hints = get_type_hints(kind.__init__)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in arguments.items():
        if name not in parameters and not takes_any:
            known = list(parameters)
            raise ValueError(f"{where}: it has no argument {name!r}; {_nearest(name, known, known)}")
        if not _fits(value, hints.get(name, Any)):
            raise ValueError(f"{where}, {name}: {value!r:.80} is not {_type_text(hints[name])}")
    required = (
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    if lacking := [name for name in required if name not in arguments]:
        raise ValueError(f"{where}: give {', '.join(lacking)} in init_args")


def _check_names(given: Any, known: Collection[str], where: str, what: str) -> None:
    """Check that every name in an argument is one of the study's."""
    names = [given] if isinstance(given, str) else list(map(str, given or ()))
    for name in names:
        pattern = re.escape(name).replace(re.escape("{ability}"), ".+")
        if not any(re.fullmatch(pattern, one) for one in known):
            raise ValueError(f"{where}: the study has no {what} {name!r}; {_nearest(name, known, known)}")


def _nearest(name: str, candidates: Iterable[str], shown: Iterable[str]) -> str:
    known = ", ".join(shown)
    return did_you_mean(name, candidates, f"known are {known}" if known else "there is none")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of YAML fits an annotation; unknown annotations accept anything."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is type(None):
        return value is None
    if origin in (str, bool):
        return isinstance(value, origin)
    if origin in (int, float):
        return isinstance(value, (int, float) if origin is float else int) and not isinstance(value, bool)
    if origin in (list, tuple, set, Sequence, Collection, Iterable):
        return isinstance(value, (list, tuple)) and all(_fits(part, inner[0]) for part in (value if inner else ()))
    if origin in (dict, Mapping):
        pairs = value.items() if isinstance(value, dict) and inner else ()
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in pairs)
    return True


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else re.sub(r"[\w.]+\.(\w+)", r"\1", str(hint))
