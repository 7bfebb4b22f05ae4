"""A study: one base config, named changes to it, a grid of values and seeds; every combination is a run.

    study: k_sweep                                          # folder in lightning_logs/
    base: ../dmt.yaml                                       # config of fit (or a list), relative to this file
    set: {trainer.callbacks: [...]}                         # changes for all runs
    seeds: [1, 2, 3]
    grid:                                                   # factors: every combination of their values
      k: {keys: [schedule.k], values: [0, 1/256, 1/64]}
      size: {values: {small: {model.path: lab-small}, base: {model.path: lab-base}}}      # named values, each some keys
    runs:                                                   # named changes; each may have a grid of its own
      dmt: {}
      multi_task: {set: {schedule: {class_path: MultiTask}}, grid: {}}
    figures: [k]                                            # what the report draws

Keys are dotted as on the command line. A fraction may be written 1/256.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftlab.config import merge_config, read_yaml, set_key

FIGURES = ("scaling", "single_against_mixed", "ratio", "k", "strategies", "equal_count", "leave_one_out")
"""What the report of a study may draw."""
_KEYS = {"study", "title", "question", "base", "set", "seeds", "grid", "runs", "figures"}
_ENTRY_KEYS = {"set", "grid"}


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: Unique in the study; names its folder.
        config_name: The named changes that it has; runs that differ only in factors or seed share it.
        seed: Its ``seed_everything``.
        factors: The value of each factor, as the config has it.
        config: The whole config of ``fit``.
    """

    name: str
    config_name: str
    seed: int
    factors: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: Names its folder.
        title: Heads its report.
        question: What it answers.
        figures: Kinds of figures that its report has.
        factors: Values of each factor, in order.
        seeds: Of its runs.
        runs: All of them, in order.
    """

    name: str
    title: str
    question: str
    figures: tuple[str, ...]
    factors: dict[str, list[Any]]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]

    def to_dict(self) -> dict[str, Any]:
        """What a report needs of it."""
        about = {"study": self.name, "title": self.title, "question": self.question, "figures": list(self.figures)}
        return {**about, "factors": self.factors, "seeds": list(self.seeds), "runs": [run.name for run in self.runs]}


def read_study(
    path: Path, replaced: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None
) -> Study:
    """Read a study file.

    Args:
        path: The file.
        replaced: Keys of the file replaced by these, such as ``seeds``.
        changes: Last changes to every run's config, by dotted keys.

    Raises:
        ValueError: The file, its base or an entry is not what it must be: says which.
    """
    content = {**read_yaml(path, "--config"), **(replaced or {})}
    if unknown := sorted(set(content) - _KEYS):
        raise ValueError(f"{path}: {unknown[0]!r} is no key of a study; there are {', '.join(sorted(_KEYS))}")
    if "base" not in content:
        raise ValueError(f"{path}: give base, the config of fit that the runs start from")
    bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
    base: dict[str, Any] = {}
    for name in bases:
        merge_config(base, read_yaml(path.parent / str(name), f"{path}, base"))
    _apply(base, content.get("set") or {})
    seeds = tuple(content.get("seeds") or [int(base.get("seed_everything") or 0)])
    named = content.get("runs") or {path.stem: {}}
    runs: list[Run] = []
    factors: dict[str, list[Any]] = {}
    for config_name, entry in named.items():
        entry = entry or {}
        if not isinstance(entry, dict) or set(entry) - _ENTRY_KEYS:
            raise ValueError(f"{path}, runs.{config_name}: an entry has set and grid, not {entry!r}")
        changed = deepcopy(base)
        _apply(changed, entry.get("set") or {})
        grid = entry["grid"] if "grid" in entry else content.get("grid")
        runs += _combinations(config_name, changed, _checked_grid(path, config_name, grid or {}), seeds, factors)
    for run in runs:
        _apply(run.config, changes or {})
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: two runs would be called {twice[0]}; give the values of a factor other names")
    figures = tuple(content.get("figures") or ())
    for figure in figures:
        if figure not in FIGURES:
            near = difflib.get_close_matches(str(figure), FIGURES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIGURES)}"
            raise ValueError(f"{path}, figures: there is no {figure!r}; {hint}")
    name = str(content.get("study") or path.stem)
    about = (str(content.get("title") or name), str(content.get("question") or ""))
    return Study(name, *about, figures, factors, seeds, tuple(runs))


def _apply(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        *parents, last = key.split(".")
        if parents:
            set_key(config, [*parents, last], _number(deepcopy(value)))
        else:
            merge_config(config, {last: _number(deepcopy(value))})


def _number(value: Any) -> Any:
    """1/256 as the number that it is, wherever it stands."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", value) if isinstance(value, str) else None
    return int(match[1]) / int(match[2]) if match else value


def _checked_grid(path: Path, config_name: str, grid: Any) -> dict[str, dict[str, Any]]:
    where = f"{path}, grid of {config_name}"
    if not isinstance(grid, dict):
        raise ValueError(f"{where}: give factors by name, not {grid!r}")
    for name, factor in grid.items():
        values = factor.get("values") if isinstance(factor, dict) else None
        listed = isinstance(values, list) and isinstance(factor.get("keys"), list) and set(factor) == {"keys", "values"}
        named = isinstance(values, dict) and set(factor) == {"values"} and all(type(v) is dict for v in values.values())
        if not values or not (listed or named):
            raise ValueError(
                f"{where}: {name} needs keys: [...] of the config with values: [...], or values with names, "
                f"each with its keys: {{small: {{model.path: lab-small}}}}; it is {factor!r}"
            )
    return grid


def _combinations(
    config_name: str,
    base: dict[str, Any],
    grid: Mapping[str, Mapping[str, Any]],
    seeds: tuple[int, ...],
    factors: dict[str, list[Any]],
) -> Iterator[Run]:
    """The runs of one named config; ``factors`` gets the values that are new."""
    for values in itertools.product(*(factor["values"] for factor in grid.values())):
        config, chosen, labels = deepcopy(base), {}, [config_name]
        for (name, factor), value in zip(grid.items(), values, strict=True):
            named = isinstance(factor["values"], dict)
            _apply(config, factor["values"][value] if named else dict.fromkeys(factor["keys"], value))
            chosen[name] = value if named else _number(value)
            known = factors.setdefault(name, [])
            known += [chosen[name]] if chosen[name] not in known else []
            labels.append(f"{name}={str(value).replace('/', '_')}")
        for seed in seeds:
            seeded = {**deepcopy(config), "seed_everything": seed}
            yield Run("-".join([*labels, f"seed={seed}"]), config_name, seed, dict(chosen), _resolved(seeded))


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """References resolved last, so that a swept value reaches all that refer to it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(f"base: {' '.join(str(error).split())}") from None
