"""A study: one base config, named changes to it, a grid of values and seeds; every combination is a run.

    study: k_sweep                                          # folder in lightning_logs/
    base: ../dmt.yaml                                       # config of fit, or a list: beside this file, or sftlab:dmt
    set: {trainer.callbacks: [...]}                         # changes for all runs
    seeds: [1, 2, 3]
    grid:                                                   # factors: every combination of their values
      k: {keys: [schedule.k], values: [0, 1/256, 1/64]}
      size: {values: {small: {model.path: lab-small}, base: {model.path: lab-base}}}      # named values, each some keys
    runs:                                                   # named changes; each may have a grid and seeds of its own
      dmt: {}
      multi_task: {set: {schedule: {class_path: MultiTask}}, grid: {}}
    budget: {of: multi_task, units: [epochs, steps]}        # every run also at the optimizer steps of that one
    figures: [k, {class_path: Scaling, init_args: {axis: k}}]   # what the report draws: names, class paths
    needs: [bases.yaml]                                     # studies, relative to this file, that are run before it
    keep: weights                                           # of finished runs: all, weights or scores; see --prune

Keys are dotted as on the command line. A fraction may be written 1/256. A need may also be a command whose folder is
missing: {tag: {config: ../dmt.yaml, ability: general, drop: code|math, to: tags/general}}.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sftlab.config import merge_config, set_key
from sftlab.credentials import kept_secrets
from sftlab.files import MAX_NAME_BYTES, checked_name
from sftlab.report.named import figures_of
from sftlab.shipped import config_path
from sftlab.yaml_files import read_yaml

_KEYS = {"study", "title", "question", "base", "set", "seeds", "grid", "runs", "figures", "needs", "budget", "keep"}
BUDGETS = ("epochs", "steps", "supervised_tokens")
"""Units of a budget: each run's own epochs, or the optimizer steps or supervised tokens of one of the runs."""
_ENTRY_KEYS = {"set", "grid", "seeds"}
_MOST_RUNS = 10_000
Keep = Literal["all", "weights", "scores"]
Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: Name of its folder, unique in the study.
        config_name: Name of its entry under ``runs``; runs that differ only in factors or seed share it.
        seed: Its ``seed_everything``.
        factors: The value of each factor; lists and mappings as JSON text.
        config: The whole config of ``fit``.
        budget_of: Name of the run whose length it gets, counted in its factor ``budget``; by default itself.
    """

    name: str
    config_name: str
    seed: int
    factors: dict[str, Any]
    config: dict[str, Any]
    budget_of: str = ""


@dataclass(frozen=True)
class Study:
    """The content of a study file.

    Attributes:
        name: Name of its folder.
        title: Title of its report.
        question: The question that it answers.
        figures: Figures of its report, by name or as class_path with init_args.
        factors: Values of each factor, in order.
        written: The same values as the user wrote them: 1/256.
        seeds: Seeds of its runs.
        runs: All runs, in order.
        needs: Study files, and commands with their options, that must have run before.
        keep: What finished runs keep: all, weights (no checkpoints), or scores (no models either).
    """

    name: str
    title: str
    question: str
    figures: tuple[Any, ...]
    factors: dict[str, list[Scalar]]
    written: dict[str, list[str]]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    needs: tuple[Path | tuple[str, dict[str, Any]], ...] = ()
    keep: Keep = "all"

    def to_dict(self) -> dict[str, Any]:
        """Return what a report needs of it."""
        about = {"study": self.name, "title": self.title, "question": self.question, "figures": list(self.figures)}
        values = {"factors": self.factors, "written": self.written}
        return {**about, **values, "seeds": list(self.seeds), "runs": [run.name for run in self.runs]}


def read_study(
    path: Path, replaced: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None
) -> Study:
    """Read a study file.

    Args:
        path: The file.
        replaced: Keys that replace those of the file, such as ``seeds``.
        changes: Final changes to every run's config, by dotted keys.

    Raises:
        ValueError: The file, its base or an entry is invalid; the message says which.
    """
    content = {**read_yaml(path, "--config"), **(replaced or {})}
    if unknown := sorted(set(content) - _KEYS):
        raise ValueError(f"{path}: {unknown[0]!r} is not a key of a study; there are {', '.join(sorted(_KEYS))}")
    if "base" not in content:
        raise ValueError(f"{path}: give base, the config of fit that the runs start from")
    name = checked_name(f"{path}, study", content.get("study") or path.stem)
    bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
    if (keep := content.get("keep", "all")) not in get_args(Keep):
        raise ValueError(f"{path}, keep: {keep!r} is not one of {', '.join(get_args(Keep))}")
    base: dict[str, Any] = {}
    for base_name in bases:
        merge_config(base, read_yaml(config_path(str(base_name), path.parent), f"{path}, base"))
    _apply(base, _mapping(path, "set", content.get("set")))
    seeds = _seeds(path, content.get("seeds"), base)
    factors, runs = _Factors(path), list[Run]()
    budget = _budget(path, content.get("budget"))
    for key, entry in _mapping(path, "runs", content.get("runs") or {path.stem: {}}).items():
        config_name, entry = checked_name(f"{path}, runs", key), _mapping(path, f"runs.{key}", entry)
        if unknown := sorted(set(map(str, entry)) - _ENTRY_KEYS):
            raise ValueError(f"{path}, runs.{key}: an entry has set, grid and seeds, not {', '.join(unknown)}")
        changed = deepcopy(base)
        _apply(changed, _set_of_run(path, f"runs.{key}.set", entry.get("set")))
        grid = entry["grid"] if "grid" in entry else content.get("grid")
        checked = _checked_grid(path, config_name, grid, budget)
        mine = _seeds(path, entry["seeds"], base) if "seeds" in entry else seeds
        runs += factors.combinations(config_name, changed, checked, mine)
        if len(runs) > _MOST_RUNS:
            raise ValueError(f"{path}: more than {_MOST_RUNS:,} runs; is there a factor too many in the grid?")
    for run in runs:
        _apply(run.config, changes or {})
    names = [run.name for run in runs]
    if twice := sorted({run_name for run_name in names if names.count(run_name) > 1}):
        raise ValueError(f"{path}: two runs would be called {twice[0]}; give the values of a factor other names")
    if budget:
        runs = _held_equal(path, runs, str(content["budget"]["of"]))
    figures = content.get("figures") or []
    figures_of(figures, f"{path}, figures", {run.config_name for run in runs}, list(factors.values))
    about = (str(content.get("title") or name), str(content.get("question") or ""))
    needs = _needs(path, content.get("needs"))
    used = tuple(dict.fromkeys([*seeds, *(run.seed for run in runs)])) if runs else seeds
    return Study(name, *about, tuple(figures), factors.values, factors.written, used, tuple(runs), needs, keep)


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value or {}, dict):
        raise ValueError(f"{path}, {key}: give keys and values, not {value!r}")
    if odd := [name for name in value or {} if type(name) not in (str, int)]:  # in YAML, no and on are truth values
        raise ValueError(f"{path}, {key}: the key {odd[0]!r} is not text; write it in quotes")
    return {str(name): inner for name, inner in (value or {}).items()}


def _seeds(path: Path, given: Any, base: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = [base.get("seed_everything") or 0] if given is None else given if isinstance(given, list) else [given]
    wrong = [seed for seed in seeds if type(seed) is not int or not 0 <= seed < 2**32]
    if wrong or not seeds:
        raise ValueError(f"{path}, seeds: give whole numbers from 0 on, such as [1, 2, 3], not {given!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}, seeds: {given!r} names a seed twice")
    return tuple(seeds)


def _budget(path: Path, given: Any) -> dict[str, dict[str, Any]]:
    """Return the factor ``budget`` if a study has one."""
    if given is None:
        return {}
    content = _mapping(path, "budget", given)
    units = content.get("units", list(BUDGETS))
    if set(content) - {"of", "units"} or not content.get("of") or not isinstance(units, list) or not units:
        raise ValueError(f"{path}, budget: give of (one of runs) and units ({', '.join(BUDGETS)}), not {given!r}")
    if unknown := [unit for unit in units if unit not in BUDGETS]:
        raise ValueError(f"{path}, budget.units: {unknown[0]!r} is not one of {', '.join(BUDGETS)}")
    return {"budget": {"values": {unit: {} for unit in units}}}


def _held_equal(path: Path, runs: Sequence[Run], of: str) -> list[Run]:
    """Return the runs, each with the run whose length it gets: that of config ``of`` with the same factors and seed."""
    others = {(tuple(run.factors.items()), run.seed): run.name for run in runs if run.config_name == of}
    held = []
    for run in runs:
        is_own = run.config_name == of or run.factors["budget"] == "epochs"
        reference = "" if is_own else others.get((tuple(run.factors.items()), run.seed))
        if reference is None:
            raise ValueError(f"{path}, budget.of: {of!r} has no run with the factors of {run.name}")
        held.append(replace(run, budget_of=reference))
    return held


def _needs(path: Path, given: Any) -> tuple[Path | tuple[str, dict[str, Any]], ...]:
    needs: list[Path | tuple[str, dict[str, Any]]] = []
    for need in given if isinstance(given, list) else [given] if given else []:
        if isinstance(need, str):
            needs.append(config_path(need, path.parent))
            continue
        (command, options), *more = (need.items() if isinstance(need, dict) else {}.items()) or [("", None)]
        if more or not isinstance(options, dict) or not options.get("to") or command not in _NEED_COMMANDS:
            raise ValueError(
                f"{path}, needs: {need!r} is neither a study file nor one of the commands {', '.join(_NEED_COMMANDS)} "
                "with its options, among them to: the folder that it fills"
            )
        config = {"config": str(config_path(str(options["config"]), path.parent))} if "config" in options else {}
        needs.append((command, {**options, **config}))
    return tuple(needs)


_NEED_COMMANDS = ("tag", "leaks", "card", "represent")


def _apply(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        *parents, last = str(key).split(".")
        if parents:
            set_key(config, [*parents, last], plain_number(deepcopy(value)))
        else:
            merge_config(config, {last: plain_number(deepcopy(value))})


def plain_number(value: Any) -> Any:
    """Return 1/256 as a number, anywhere inside a value."""
    if isinstance(value, dict):
        return {key: plain_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_number(item) for item in value]
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", value) if isinstance(value, str) else None
    return int(match[1]) / int(match[2]) if match else value


def _set_of_run(path: Path, key: str, given: Any) -> dict[str, Any]:
    changes = _mapping(path, key, given)
    _refuse_seed(f"{path}, {key}", changes)
    return changes


def _checked_grid(
    path: Path, config_name: str, grid: Any, budget: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    where = f"{path}, grid of {config_name}"
    owners: dict[str, str] = {}  # for each key of the config, the factor that sets it
    grid = _mapping(path, f"grid of {config_name}", grid)
    for name, factor in grid.items():
        values = factor.get("values") if isinstance(factor, dict) else None
        keys = factor.get("keys") if isinstance(factor, dict) else None
        listed = isinstance(values, list) and _are_texts(keys) and keys and set(factor) == {"keys", "values"}
        named = isinstance(values, dict) and set(factor) == {"values"} and all(type(v) is dict for v in values.values())
        if not values or not (listed or named):
            raise ValueError(
                f"{where}: {name} needs keys: [...] of the config with values: [...], or values with names, "
                f"each with its keys: {{small: {{model.path: lab-small}}}}; it is {factor!r}"
            )
        set_here = list(keys or []) if listed else [key for changes in values.values() for key in changes]
        _refuse_seed(f"{where}: {name}", set_here)
        for key in {str(key).replace(".init_args.", ".") for key in set_here}:
            if (other := owners.setdefault(key, name)) != name:
                raise ValueError(f"{where}: {other} and {name} both set {key}, so one would do nothing; take one away")
    if budget.keys() & grid.keys():
        raise ValueError(f"{where}: budget is a factor already, by its own key; rename one")
    return grid | budget


def _refuse_seed(where: str, keys: Iterable[str]) -> None:
    """Refuse a seed in a run or factor, which one of ``seeds`` would override."""
    if "seed_everything" in keys:
        raise ValueError(f"{where}: seed_everything is what seeds says: [1, 2, 3], of the study or of a run")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


class _Factors:
    """The factors of a study, collected while its runs are made: each value once, in order, and as written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, list[Scalar]] = {}
        self.written: dict[str, list[str]] = {}

    def combinations(
        self, config_name: str, base: dict[str, Any], grid: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]
    ) -> Iterator[Run]:
        """Yield the runs of one named config."""
        levels = [self._levels(name, factor) for name, factor in grid.items()]
        if math.prod(map(len, levels)) * len(seeds) > _MOST_RUNS:
            raise ValueError(f"{self.path}, grid of {config_name}: more than {_MOST_RUNS:,} combinations")
        for chosen in itertools.product(*levels):
            config = deepcopy(base)
            for _, changes in chosen:
                _apply(config, changes)
            factors = {name: self.values[name][index] for name, (index, _) in zip(grid, chosen, strict=True)}
            labels = [f"{name}={_slug(self.written[name][i])}" for name, (i, _) in zip(grid, chosen, strict=True)]
            for seed in seeds:
                seeded = {**deepcopy(config), "seed_everything": seed}
                name = _short("-".join([config_name, *labels]), f"-seed={seed}")
                yield Run(name, config_name, seed, factors, _resolved(seeded))

    def _levels(self, name: str, factor: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
        """Return for each value its number among all values of the factor, and its changes.

        Raises:
            ValueError: Two values are the same: 1/4 and 0.25.
        """
        checked_name(f"{self.path}, grid", name)
        known, written = self.values.setdefault(name, []), self.written.setdefault(name, [])
        numbers = {(type(value) is bool, value): number for number, value in enumerate(known)}
        levels, mine = [], set()
        for given in factor["values"]:
            is_named = isinstance(factor["values"], dict)
            value = str(given) if is_named and not isinstance(given, (int, float)) else _scalar(plain_number(given))
            if (kind := (type(value) is bool, value)) in mine:
                raise ValueError(f"{self.path}, grid of {name}: {given!r} stands there twice")
            mine.add(kind)
            if kind not in numbers:
                numbers[kind] = len(known)
                known.append(value)
                written.append(given if isinstance(given, str) else _text(given))
            changes = factor["values"][given] if is_named else dict.fromkeys(factor["keys"], given)
            levels.append((numbers[kind], changes))
        return levels


def _scalar(value: Any) -> Scalar:
    """Return a value for tables and figures: lists and mappings as text."""
    return value if isinstance(value, (bool, int, float, str)) or value is None else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (list, dict, bool)) or value is None else str(value)


def _slug(text: str) -> str:
    """Return a value as a part of a file's name: 1/256 becomes 1_256."""
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_.") or "_"


def _short(name: str, end: str) -> str:
    """Return a name that fits a file system; a long one is cut and gets a hash."""
    most = MAX_NAME_BYTES - len(end.encode())
    if len(name.encode()) <= most:
        return name + end
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return name.encode()[: most - 9].decode(errors="ignore") + f"-{digest}{end}"


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Resolve references last, so that a swept value reaches everything that refers to it; those to secrets stay."""
    if "${" not in str(config):
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(kept_secrets(config)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(f"base: {' '.join(str(error).split())}") from None
