"""What a study found: its runs' scores by what they have in common, averaged over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from sftlab.report.rows import HELD_OUT, Panel, Result, RunCost, Value, read_costs, read_head, read_results
from sftlab.stats.interval import error_of, normal, student

_FRACTION = re.compile(r"\d{1,18}/\d{1,18}")


@dataclass(frozen=True)
class Point:
    """A mean over seeds.

    Attributes:
        value: The mean.
        low: With ``high`` its 95 % interval. Of several seeds: Student's t over them, and never narrower than what the
            number of problems alone allows (seeds that happen to agree prove little). Of one: that over its problems.
            nan where unknown.
        error: Standard error: the larger of that over seeds and that over problems; nan where unknown.
        by_seed: The value of each seed.
    """

    value: float
    low: float
    high: float
    error: float
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    config: str
    factors: tuple[tuple[str, Value], ...]

    def __str__(self) -> str:
        """The config, then its factors."""
        return " ".join([self.config, *(f"{name}={text_of(value)}" for name, value in self.factors)])


@dataclass(frozen=True, eq=False)
class Evidence:
    """A study's files, and its runs' scores by what they have in common."""

    folder: Path
    study: str
    title: str
    question: str
    figures: list[Any]
    factors: dict[str, list[Value]]
    seeds: Sequence[int]
    runs: Sequence[str]
    written: dict[str, list[str]]
    results: list[Result]
    costs: list[RunCost]

    @cached_property
    def final(self) -> list[Result]:
        """Headline scores after the last stage, held-out losses among them."""
        ends = [r for r in self.results if r.last_stage and not r.inside and r.value is not None]
        return [r for r in ends if r.headline or r.task == HELD_OUT]

    @cached_property
    def panels(self) -> list[Panel]:
        """Panels of scores, in the order of the results."""
        return list(dict.fromkeys(r.panel for r in self.final if r.task != HELD_OUT))

    @cached_property
    def loss_panels(self) -> list[Panel]:
        """Panels of held-out losses."""
        return list(dict.fromkeys(r.panel for r in self.final if r.task == HELD_OUT))

    @cached_property
    def configs(self) -> list[str]:
        """Configs, in the order of the runs; those without any result too."""
        return list(dict.fromkeys([*(c.config for c in self.costs), *(r.config for r in self.results)]))

    @cached_property
    def groups(self) -> list[Group]:
        """Groups that have results, by config, then by factors in the study's order."""
        found = dict.fromkeys(self.group_of(r.config, r.factors) for r in self.results)
        return sorted(found, key=lambda g: (self.configs.index(g.config), [self._rank(*f) for f in g.factors]))

    def group_of(self, config: str, factors: Mapping[str, Value]) -> Group:
        """The group of a config and factors, these in the study's order."""
        names = [*(n for n in self.factors if n in factors), *(n for n in factors if n not in self.factors)]
        return Group(config, tuple((name, factors[name]) for name in names))

    def point(self, panel: Panel, group: Group) -> Point | None:
        """The mean of a group's final scores; None where it has none."""
        rows = [r for r in self._by_group.get(group, []) if r.panel == panel]
        return point_of(rows) if rows else None

    def specialists(self, ability: str) -> list[str]:
        """Configs that train one ability alone."""
        return [name for name in (f"single_{ability}", f"{ability}_only") if name in self.configs]

    def without(self, config: str, axis: str) -> list[tuple[tuple[str, Value], ...]]:
        """The factors other than ``axis`` with which a config was run: one line of a figure each."""
        mine = (g for g in self.groups if g.config == config and axis in dict(g.factors))
        return list(dict.fromkeys(tuple(f for f in g.factors if f[0] != axis) for g in mine))

    def line(
        self, panel: Panel, config: str, axis: str, rest: tuple[tuple[str, Value], ...] = ()
    ) -> list[tuple[float, Point]]:
        """Points of a config along a factor, ascending, the other factors being ``rest``."""
        found = []
        for group in self.groups:
            factors = dict(group.factors)
            if group.config == config and axis in factors:
                x = number_of(factors.pop(axis), axis)
                if factors == dict(rest) and (point := self.point(panel, group)):
                    found.append((x, point))
        return sorted(found, key=lambda pair: pair[0])

    def missing(self, configs: Iterable[str]) -> list[str]:
        """Runs of these configs without a final score, each with its status."""
        scored = {r.run for r in self.final}
        status = {c.run: c.status for c in self.costs}
        owners = {c.run: c.config for c in self.costs}
        wanted = set(configs)
        names = dict.fromkeys([*self.runs, *status])
        lacking = [n for n in names if n not in scored and (n not in owners or owners[n] in wanted)]
        return [f"{name} ({status.get(name, 'missing').replace('done', 'no score')})" for name in lacking]

    @cached_property
    def _by_group(self) -> dict[Group, list[Result]]:
        found: dict[Group, list[Result]] = {}
        for r in self.final:
            found.setdefault(self.group_of(r.config, r.factors), []).append(r)
        return found

    def _rank(self, name: str, value: Value) -> tuple[int, str]:
        order = self.factors.get(name, [])
        return (order.index(value) if value in order else len(order), str(value))


def point_of(rows: Sequence[Result]) -> Point:
    """Mean and interval over rows of different seeds and one panel."""
    by_seed = {row.seed: float(row.value if row.value is not None else math.nan) for row in rows}
    values, first = list(by_seed.values()), rows[0]
    top = first.panel.best if first.panel.best is not None else math.inf
    problems = math.sqrt(sum(_error_over_problems(row) ** 2 for row in rows)) / len(rows)
    mean = student(values)
    low, high = mean.low, mean.high
    if len(values) == 1:
        low, high = (math.nan if end is None else end for end in (first.low, first.high))
    elif not math.isnan(problems):
        ends = normal(mean.value, problems)
        low, high = min(low, ends[0]), max(high, ends[1])
    if not math.isnan(low):
        low, high = max(0.0, low), min(top, high)
    error = max((e for e in (problems, mean.error) if not math.isnan(e)), default=math.nan)
    return Point(mean.value, low, high, error, by_seed)


def _error_over_problems(row: Result) -> float:
    """From the interval where there is one: it has a width where every answer was wrong, the standard error has not."""
    if row.low is not None and row.high is not None and row.high > row.low:
        return error_of(row.low, row.high)
    return math.nan if row.standard_error is None else row.standard_error


def number_of(value: Value, factor: str) -> float:
    """A factor's value as a number; 1/4 may be written so.

    Raises:
        ValueError: It is none.
    """
    try:
        return float(Fraction(value)) if isinstance(value, str) and _FRACTION.fullmatch(value) else float(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"factor {factor}: {value!r} is no number, so it cannot be an axis of a figure") from None


def text_of(value: Value) -> str:
    """A value as people write it: 1/256 rather than 0.00390625."""
    if isinstance(value, str) or value in (0, 1):
        return str(value) if isinstance(value, str) else f"{value:.0f}"
    near = Fraction(value).limit_denominator(4096)
    return f"{near.numerator}/{near.denominator}" if near and abs(near - value) < 1e-9 and value < 1 else f"{value:g}"


def read_evidence(folder: Path) -> Evidence:
    """Read a study's folder.

    Raises:
        ValueError: It is none, or a line of its files is malformed.
    """
    head = read_head(folder)
    return Evidence(folder, **vars(head), results=read_results(folder), costs=read_costs(folder))
