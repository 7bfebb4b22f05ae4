"""The search file.

search: lab                                    # folder in lightning_logs/
base: ../multi_task.yaml                       # config of fit (or a list), relative to this file
set: {schedule.steps: 200}                     # changes for all runs
factors:
  share: {shares: {math: [0, 1], code: [0, 1], general: [0.2, 1]}, step: 0.1}
  k:     {keys: [schedule.k], low: 1/256, high: 1, scale: log, zero: true}
  order: {values: {code_first: {schedule.order: [code, math]}, math_first: {schedule.order: [math, code]}}}
budget: {runs: 24}                             # or tokens: 5_000_000
batch: 4                                       # runs of each proposal
weights: {math: 1, code: 1, general: 2}        # what each ability counts
constraints: {general: {no_lower_than: alone, minus: 0.02}}
anchors: {my_recipe: {schedule.k: 0.1}}        # further runs that are always made
seeds: [1]                                     # of the runs of the design and of the proposals
replicates: 2                                  # further seeds of the first anchor: how far seeds differ
verify: 3                                      # fresh seeds of the proposal and of the best anchor
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftlab.files import checked_name
from sftlab.search.factors import Choice, Factor, Number, Shares, even_levels
from sftlab.search.space import Anchor, Space
from sftlab.study.study import plain_number
from sftlab.yaml_files import read_yaml

_KEYS = {
    "search", "title", "question", "base", "set", "factors", "budget", "batch", "weights", "constraints", "anchors",
    "seeds", "replicates", "verify",
}  # fmt: skip
_NUM_LEVELS = 9


@dataclass(frozen=True)
class Constraint:
    """A floor for one ability's score.

    Attributes:
        ability: Name of the ability.
        anchor: Name of the anchor whose score is the floor; empty if the floor is a number.
        number: The floor, or how far the score may be below the anchor's.
    """

    ability: str
    anchor: str
    number: float

    def text(self) -> str:
        """Return the constraint as readable text."""
        if not self.anchor:
            return f"{self.ability} at least {self.number:g}"
        return f"{self.ability} no lower than {self.anchor} minus {100 * self.number:g} points"


@dataclass(frozen=True)
class SearchSpec:
    """The content of a search file.

    Attributes:
        max_runs: The budget in runs; None if it is in tokens.
        max_tokens: The budget in tokens trained.
        content: The file's ``base`` and ``set``, for the study that runs it.
        folder: The file's folder; ``base`` is relative to it.
    """

    name: str
    title: str
    question: str
    space: Space
    anchors: tuple[Anchor, ...]
    max_runs: int | None
    max_tokens: int | None
    batch: int
    weights: dict[str, float]
    constraints: tuple[Constraint, ...]
    seeds: tuple[int, ...]
    replicates: int
    verify: int
    content: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def fresh_seeds(self) -> tuple[int, ...]:
        """Return seeds that no other run has."""
        first = max(self.seeds) + self.replicates + 1
        return tuple(range(first, first + self.verify))

    def identity(self) -> str:
        """Hash of everything that the search's decisions depend on."""
        told = repr((self.space, self.anchors, self.max_runs, self.max_tokens, self.batch, self.weights))
        told += repr((self.constraints, self.seeds, self.replicates, self.verify))
        told += json.dumps(self.content, sort_keys=True, default=str)
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def read_search(path: Path, sizes: Mapping[str, int], replaced: Mapping[str, Any] | None = None) -> SearchSpec:
    """Read a search file.

    Args:
        path: The file.
        sizes: Number of examples of each ability of the data, which defines ``proportional``.
        replaced: Keys that replace those of the file.

    Raises:
        ValueError: The file is invalid; the message says where and why.
    """
    content = {**read_yaml(path, "--config"), **(replaced or {})}
    if unknown := sorted(set(content) - _KEYS):
        raise ValueError(f"{path}: {unknown[0]!r} is not a key of a search; there are {', '.join(sorted(_KEYS))}")
    if "base" not in content:
        raise ValueError(f"{path}: give base, the config of fit that the runs start from")
    name = checked_name(f"{path}, search", content.get("search") or path.stem)
    factors = tuple(_factor(path, str(key), value, sizes) for key, value in _pairs(path, content, "factors"))
    if not factors:
        raise ValueError(f"{path}: give factors, what the search varies")
    space = Space(factors)
    extra = [
        Anchor(checked_name(f"{path}, anchors", key), None, "", _changes(path, f"anchors.{key}", value))
        for key, value in _pairs(path, content, "anchors")
    ]
    anchors = [*space.anchors(), *([] if space.shares else _outside(sizes)), *extra]
    seeds = content.get("seeds", [1])
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int or not 0 <= s < 2**31 for s in seeds):
        raise ValueError(f"{path}, seeds: give whole numbers from 0 on, such as [1], not {seeds!r}")
    budget = _of(path, "budget", content.get("budget"))
    if len(budget) != 1 or set(budget) - {"runs", "tokens"}:
        raise ValueError(f"{path}, budget: give runs or tokens: {{runs: 24}}, not {content.get('budget')!r}")
    amount = _whole(path, "budget", next(iter(budget.values())), 1)
    weights = {str(k): _number(path, f"weights.{k}", v) for k, v in _pairs(path, content, "weights")}
    if set(weights) - set(sizes) or any(w < 0 for w in weights.values()) or (weights and not any(weights.values())):
        raise ValueError(f"{path}, weights: {weights!r} must name abilities of the data, each at least 0, one more")
    constraints = _constraints(path, content, sizes, anchors)
    return SearchSpec(
        name=name,
        title=str(content.get("title") or name),
        question=str(content.get("question") or ""),
        space=space,
        anchors=tuple({anchor.name: anchor for anchor in anchors}.values()),
        max_runs=amount if "runs" in budget else None,
        max_tokens=amount if "tokens" in budget else None,
        batch=_whole(path, "batch", content.get("batch", 4), 1),
        weights={ability: weights.get(ability, 0.0 if weights else 1.0) for ability in sizes},
        constraints=constraints,
        seeds=tuple(seeds),
        replicates=_whole(path, "replicates", content.get("replicates", 2), 0),
        verify=_whole(path, "verify", content.get("verify", 3), 1),
        content={key: content[key] for key in ("base", "set") if key in content},
        folder=path.parent,
    )


def _outside(sizes: Mapping[str, int]) -> list[Anchor]:
    """Return anchors of a space without a simplex: each ability alone and all mixed, in one stage."""
    return [*(Anchor(f"{ability}_alone", None, ability) for ability in sizes), Anchor("proportional", None)]


def _factor(path: Path, name: str, given: Any, sizes: Mapping[str, int]) -> Factor:
    where = f"{path}, factors.{name}"
    checked_name(where, name)
    content = _of(path, f"factors.{name}", given)
    if "shares" in content:
        return _shares(path, name, content, sizes)
    if isinstance(content.get("values"), dict) and set(content) == {"values"}:
        options = {str(key): _of(path, f"factors.{name}.{key}", value) for key, value in content["values"].items()}
        if len(options) < 2:
            raise ValueError(f"{where}: give at least two values")
        return Choice(name, options)
    known = {"keys", "low", "high", "scale", "zero", "levels", "whole"}
    keys = content.get("keys")
    if set(content) - known or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(
            f"{where}: give shares: {{math: [0, 1], ...}}; or keys: [...] with low and high (scale: log, zero, whole) "
            f"or levels; or values with names, each with its keys; it is {given!r}"
        )
    scale = content.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise ValueError(f"{where}, scale: {scale!r} is neither linear nor log")
    levels = content.get("levels", _NUM_LEVELS)
    if isinstance(levels, list):
        values = tuple(sorted({_number(path, f"factors.{name}.levels", v) for v in levels}))
    else:
        low, high = (_number(path, f"factors.{name}.{end}", content.get(end)) for end in ("low", "high"))
        if not low < high or (scale == "log" and low <= 0):
            raise ValueError(f"{where}: low {low:g} must lie below high {high:g}, and above 0 where the scale is log")
        number = _whole(path, f"factors.{name}.levels", levels, 2)
        values = even_levels(low, high, scale == "log", bool(content.get("whole", False)), number)
        values = (0.0, *values) if content.get("zero") and values[0] > 0 else values
    if len([v for v in values if v > 0 or scale == "linear"]) < 2:
        raise ValueError(f"{where}: give at least two levels (above 0 where the scale is log)")
    return Number(name, tuple(keys), values, scale == "log")


def _shares(path: Path, name: str, content: dict[str, Any], sizes: Mapping[str, int]) -> Shares:
    where = f"{path}, factors.{name}"
    if unknown := sorted(set(content) - {"shares", "step", "key"}):
        raise ValueError(f"{where}: it has shares, step and key, not {unknown[0]!r}")
    bounds = _of(path, f"factors.{name}.shares", content["shares"])
    if set(bounds) - set(sizes) or len(bounds) < 2:
        raise ValueError(
            f"{where}.shares: name at least two abilities of the data ({', '.join(sizes)}), not {bounds!r}"
        )
    ends = []
    for ability, pair in bounds.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}.shares.{ability}: give the least and the largest share, [0, 1], not {pair!r}")
        ends.append([_number(path, f"factors.{name}.shares.{ability}", end) for end in pair])
    low, high = (tuple(end[i] for end in ends) for i in (0, 1))
    if not all(0 <= a <= b <= 1 for a, b in ends) or sum(low) > 1 or sum(high) < 1:
        raise ValueError(f"{where}.shares: no shares within {bounds!r} add up to 1")
    step = _number(path, f"factors.{name}.step", content.get("step", 0.1))
    if not 0.005 <= step <= 0.5 or abs(1 / step - round(1 / step)) > 1e-6:
        raise ValueError(f"{where}.step: {step:g} must divide 1 and lie between 0.005 and 0.5")
    made = Shares(name, tuple(map(str, bounds)), low, high, step, str(content.get("key", "data.policy.weights")))
    rounded = made.rounded([max(1, sizes[ability]) for ability in made.abilities])
    if not made.levels() and 1 / step < 50:
        raise ValueError(f"{where}.shares: no multiples of {step:g} within {bounds!r} add up to 1")
    return Shares(**{**vars(made), "proportional": rounded})


def _constraints(
    path: Path, content: Mapping[str, Any], sizes: Mapping[str, int], anchors: list[Anchor]
) -> tuple[Constraint, ...]:
    found = []
    names = {anchor.name for anchor in anchors}
    for ability, given in _pairs(path, content, "constraints"):
        where = f"constraints.{ability}"
        rule = _of(path, where, given)
        if ability not in sizes or set(rule) - {"no_lower_than", "minus"} or "no_lower_than" not in rule:
            raise ValueError(
                f"{path}, {where}: give an ability with no_lower_than (alone, an anchor or a number) and minus"
            )
        floor = plain_number(rule["no_lower_than"])
        minus = _number(path, f"{where}.minus", rule.get("minus", 0))
        if isinstance(floor, str):
            name = f"{ability}_alone" if floor == "alone" else floor
            if name not in names:
                raise ValueError(f"{path}, {where}: there is no anchor {name}; there are {', '.join(sorted(names))}")
            found.append(Constraint(str(ability), name, minus))
        else:
            found.append(Constraint(str(ability), "", _number(path, where, floor) - minus))
    return tuple(found)


def _changes(path: Path, key: str, given: Any) -> tuple[tuple[str, Any], ...]:
    changes = tuple((str(name), value) for name, value in _of(path, key, given).items())
    if not changes:
        raise ValueError(f"{path}, {key}: give what it changes, by dotted keys of the config")
    return changes


def _pairs(path: Path, content: Mapping[str, Any], key: str) -> list[tuple[Any, Any]]:
    return list(_of(path, key, content.get(key)).items())


def _of(path: Path, key: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{path}, {key}: give keys and values, not {value!r}")
    return value or {}


def _number(path: Path, key: str, value: Any) -> float:
    number = plain_number(value)
    if type(number) not in (int, float) or not abs(number) < 1e15:
        raise ValueError(f"{path}, {key}: {value!r} is not a number")
    return float(number)


def _whole(path: Path, key: str, value: Any, least: int) -> int:
    if type(value) is not int or not least <= value <= 10**15:
        raise ValueError(f"{path}, {key}: {value!r} is not a whole number from {least} on")
    return value
