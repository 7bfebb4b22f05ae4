"""Evidence: the results of a study, grouped by config and factors and averaged over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from sftlab.report.rows import HELD_OUT, Panel, Result, RunCost, Value, read_costs, read_head, read_results
from sftlab.stats.interval import error_of, normal, student

Factors = tuple[tuple[str, Value], ...]
SPECIALISTS = ("single_{ability}", "{ability}_only")
"""Default names of the configs that train one ability alone."""

_FRACTION = re.compile(r"\d{1,18}/\d{1,18}")


@dataclass(frozen=True)
class Point:
    """A mean over seeds.

    Attributes:
        value: The mean.
        low: With ``high``, the 95 % interval. Over several seeds it is Student's, but never narrower than the number of
            problems allows (seeds that happen to agree prove little). For one seed it is the interval over problems.
            nan if unknown.
        error: Standard error: the larger of those over seeds and over problems; nan if unknown.
        by_seed: The value of each seed.
        runs: The run of each seed.
        num_problems: Number of problems of one run; None for a loss.
    """

    value: float
    low: float
    high: float
    error: float
    by_seed: dict[int, float]
    runs: dict[int, str] = field(default_factory=dict)
    num_problems: int | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed; ``label`` is their name for people."""

    config: str
    factors: Factors
    label: str = field(compare=False, default="")

    def __str__(self) -> str:
        """The config, then its factors."""
        return self.label


@dataclass(frozen=True)
class Series:
    """The runs of a config, optionally only those with fixed values of some factors."""

    config: str
    fixed: Factors = ()


@dataclass(frozen=True)
class Budget:
    """What a setting was trained on in all its stages, reused ones included; means over seeds, None if unknown."""

    tokens: int | None
    supervised_tokens: int | None
    steps: int | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """The results of a study, by config and factors.

    Attributes:
        folder: The study's folder.
        study: Name of the study.
        title: Title of its report.
        question: The question that it answers.
        figures: The figures named in the study file.
        factors: Values of each factor, in order.
        seeds: Seeds of the runs.
        runs: Names of all runs.
        written: The values of each factor as the user wrote them, in the order of ``factors``.
        results: Scores and held-out losses.
        costs: What each run cost.
        weights: The weight of each ability for the reader of the report; 1 by default.
        uncounted: Finished runs in the folder that are no longer part of the study and whose scores are left out.
    """

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
    weights: Mapping[str, float] = field(default_factory=dict)
    uncounted: Sequence[str] = ()

    @cached_property
    def final(self) -> list[Result]:
        """Headline scores and held-out losses after the last stage."""
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
    def abilities(self) -> list[str]:
        """Abilities that have a score."""
        return list(dict.fromkeys(panel.ability for panel in self.panels))

    @cached_property
    def configs(self) -> list[str]:
        """Configs in the order of the runs, including those without results."""
        return list(dict.fromkeys([*(c.config for c in self.costs), *(r.config for r in self.results)]))

    @cached_property
    def groups(self) -> list[Group]:
        """Groups with results, ordered by config, then by factors in the study's order."""
        place = {config: i for i, config in enumerate(self.configs)}
        return sorted(self._results_of, key=lambda g: (place[g.config], [self._rank(*f) for f in g.factors]))

    def group_of(self, config: str, factors: Mapping[str, Value]) -> Group:
        """Return the group of a config and values of factors, sorted in the study's order."""
        names = [*(n for n in self.factors if n in factors), *(n for n in factors if n not in self.factors)]
        pairs = tuple((name, factors[name]) for name in names)
        label = " ".join([config, *(f"{name}={self.text(name, value)}" for name, value in pairs)])
        return Group(config, pairs, label)

    def results_of(self, group: Group) -> list[Result]:
        """Return all scores of a group."""
        return self._results_of.get(group, [])

    def final_of(self, group: Group, panel: Panel) -> list[Result]:
        """Return a group's final scores in a panel, one per seed."""
        return self._final_of.get((group, panel), [])

    def point(self, panel: Panel, group: Group) -> Point | None:
        """Return the mean of a group's final scores in a panel; None if it has none."""
        rows = self.final_of(group, panel)
        return point_of(rows) if rows else None

    def specialists(self, ability: str, names: Sequence[str] = SPECIALISTS) -> list[Series]:
        """Return the runs that train one ability alone.

        Args:
            ability: Name of the ability.
            names: Names of configs; ``{ability}`` stands for the ability's name. In a config whose name lacks it, runs
                count if some factor has the ability's name as its value, or all runs if none has.
        """
        found = []
        for name in names:
            config = name.replace("{ability}", ability)
            if config in self.configs:
                named = tuple((f, ability) for f, values in self.factors.items() if ability in values)
                varied = {f for group in self.groups if group.config == config for f, _ in group.factors}
                fixed = () if "{ability}" in name else tuple(pair for pair in named if pair[0] in varied)
                found.append(Series(config, fixed))
        return found

    def rests(self, series: Series, axis: str) -> list[Factors]:
        """Return the combinations of factors other than ``axis`` in a series: one line of a figure each."""
        mine = (g for g in self._groups_in(series) if axis in dict(g.factors))
        return list(dict.fromkeys(tuple(f for f in g.factors if f[0] != axis and f not in series.fixed) for g in mine))

    def along(self, series: Series, axis: str, rest: Factors = ()) -> list[tuple[float, Group]]:
        """Return the groups of a series with other factors ``rest``, by ascending value of the factor ``axis``."""
        found = []
        for group in self._groups_in(series):
            factors = {name: value for name, value in group.factors if (name, value) not in series.fixed}
            if axis in factors:
                x = number_of(factors.pop(axis), axis)
                if factors == dict(rest):
                    found.append((x, group))
        return sorted(found, key=lambda pair: pair[0])

    def line(self, panel: Panel, series: Series, axis: str, rest: Factors = ()) -> list[tuple[float, Point]]:
        """Return the points of these groups in a panel."""
        return [(x, point) for x, group in self.along(series, axis, rest) if (point := self.point(panel, group))]

    def missing(self, configs: Iterable[str]) -> list[str]:
        """Return the runs of these configs without a final score, each with its status."""
        scored = {r.run for r in self.final}
        status = {c.run: c.status for c in self.costs}
        owners = {c.run: c.config for c in self.costs}
        wanted = set(configs)
        names = dict.fromkeys([*self.runs, *status])
        lacking = [n for n in names if n not in scored and (n not in owners or owners[n] in wanted)]
        return [f"{name} ({status.get(name, 'missing').replace('done', 'no score')})" for name in lacking]

    def budget(self, group: Group) -> Budget:
        """Return what a group was trained on."""
        costs = [self._cost_of[run] for run in {r.run for r in self.results_of(group)} if run in self._cost_of]
        stages = [cost.stages for cost in costs if cost.stages]
        tokens = [sum(stage.tokens for stage in mine) for mine in stages]
        known = [mine for mine in stages if all(stage.supervised_tokens is not None for stage in mine)]
        supervised = [sum(stage.supervised_tokens or 0 for stage in mine) for mine in known]
        ends = {r.run: r.step for r in self.results_of(group) if r.last_stage and not r.inside and r.step}
        return Budget(_mean(tokens), _mean(supervised), _mean(list(ends.values())))

    def text(self, factor: str, value: Value) -> str:
        """Return a value of a factor as the user wrote it."""
        values = self.factors.get(factor, [])
        for known, written in zip(values, self.written.get(factor, []), strict=False):
            if known == value:
                return written
        return text_of(value)

    def tick(self, factor: str, x: float) -> str:
        """Return a position on the axis of a factor as the user wrote it."""
        for known in self.factors.get(factor, []):
            if is_number(known) and number_of(known, factor) == x:
                return self.text(factor, known)
        return text_of(x)

    @cached_property
    def _results_of(self) -> dict[Group, list[Result]]:
        found: dict[Group, list[Result]] = {}
        for r in self.results:
            found.setdefault(self.group_of(r.config, r.factors), []).append(r)
        return found

    @cached_property
    def _final_of(self) -> dict[tuple[Group, Panel], list[Result]]:
        found: dict[tuple[Group, Panel], list[Result]] = {}
        for r in self.final:
            found.setdefault((self.group_of(r.config, r.factors), r.panel), []).append(r)
        return found

    @cached_property
    def _cost_of(self) -> dict[str, RunCost]:
        return {cost.run: cost for cost in self.costs}

    def _groups_in(self, series: Series) -> list[Group]:
        return [g for g in self.groups if g.config == series.config and set(series.fixed) <= set(g.factors)]

    def _rank(self, name: str, value: Value) -> tuple[int, str]:
        order = self.factors.get(name, [])
        return (order.index(value) if value in order else len(order), str(value))


def point_of(rows: Sequence[Result]) -> Point:
    """Compute mean and interval over rows of different seeds in one panel."""
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
    return Point(mean.value, low, high, error, by_seed, {r.seed: r.run for r in rows}, first.num_problems)


def _error_over_problems(row: Result) -> float:
    """Derive it from the interval if there is one: that has a width even if every answer was wrong."""
    if row.low is not None and row.high is not None and row.high > row.low:
        return error_of(row.low, row.high)
    return math.nan if row.standard_error is None else row.standard_error


def _mean(values: Sequence[int]) -> int | None:
    return round(sum(values) / len(values)) if values else None


def is_number(value: Value) -> bool:
    """Return whether a factor's value has a position on an axis; 1/4 may be a string."""
    try:
        number_of(value, "")
    except ValueError:
        return False
    return True


def number_of(value: Value, factor: str) -> float:
    """Return a factor's value as a number; 1/4 may be a string.

    Raises:
        ValueError: It is not a number.
    """
    try:
        found = float(Fraction(value)) if isinstance(value, str) and _FRACTION.fullmatch(value) else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"factor {factor}: {value!r} is not a number, so it cannot be an axis of a figure")
    return found


def text_of(value: Value) -> str:
    """Format a value in the usual way: 1/256 rather than 0.00390625, but 0.3 unchanged."""
    if isinstance(value, str) or value in (0, 1):
        return str(value) if isinstance(value, str) else f"{value:.0f}"
    near = Fraction(value).limit_denominator(4096)
    is_power = near.denominator & (near.denominator - 1) == 0 and near.numerator == 1
    return f"1/{near.denominator}" if is_power and abs(near - value) < 1e-9 and value < 1 else f"{value:g}"


def read_evidence(folder: Path) -> Evidence:
    """Read a study's folder.

    Raises:
        ValueError: It is not the folder of a study, or a line of its files is malformed.
    """
    head = read_head(folder)
    return Evidence(folder, **vars(head), results=read_results(folder), costs=read_costs(folder))
