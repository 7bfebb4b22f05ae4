"""The lines of a study's files, read and checked.

    study.json     name, title, question, figures, factors with their values in order, seeds, names of the runs
    results.jsonl  one score a line: run, config, seed, factors, stage, ability, task, metric, value, interval
    costs.jsonl    one run a line: status, tokens and seconds of each stage, last lines of an error

A study may come from elsewhere, so nothing of it is trusted: types and numbers are checked, and characters that act
instead of showing become pictures of themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sftlab.results.row import checked, read_objects
from sftlab.results.score import ScoreRow
from sftlab.screen import visible

Value = str | int | float
HELD_OUT = "held_out"  # the task that stands for the loss on validation data
AGAIN = "run the study again to rewrite it"
T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """What one set of axes shows: an ability by one metric of one task. ``best`` is None for a loss."""

    ability: str
    task: str
    metric: str
    best: float | None


@dataclass(frozen=True, kw_only=True)
class Result(ScoreRow):
    """One line of results.jsonl: a score of a run's stage, with the run's place in the study."""

    run: str
    config: str
    seed: int
    factors: dict[str, Value]
    stage: str = field()  # field(): no default here
    stage_index: int
    last_stage: bool
    ability: str = field()
    full: bool
    problems: str | None = None

    @property
    def panel(self) -> Panel:
        """The panel that shows it."""
        return Panel(self.ability, self.task, self.metric, None if self.task == HELD_OUT else self.best or 1.0)


@dataclass(frozen=True)
class StageCost:
    """What a stage of a run cost; a reused one was trained by another run."""

    name: str
    tokens: int
    seconds: float | None
    reused: bool
    supervised_tokens: int | None = None


@dataclass(frozen=True)
class RunCost:
    """One line of costs.jsonl. ``status`` is done, failed or missing."""

    run: str
    config: str
    seed: int
    factors: dict[str, Value]
    status: str
    stages: list[StageCost] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Head:
    """The content of study.json.

    Attributes:
        factors: Values of each factor, in order.
        written: The same values as the user wrote them.
        uncounted: Finished runs in the folder that the study no longer has.
    """

    study: str
    title: str
    question: str
    figures: list
    factors: dict[str, list]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    written: dict[str, list] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()


def read_head(folder: Path) -> Head:
    """Read study.json.

    Raises:
        ValueError: The file is missing, or a part of it is missing or of a wrong type.
    """
    path = folder / "study.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in folder.parent.glob("*/study.json"))
        hint = f"; studies beside it: {', '.join(known)}" if known else ""
        raise ValueError(f"{folder}: no study (it has no study.json); give lightning_logs/<study>{hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {AGAIN}") from None
    head = _told(Head, _visible(content), str(path))
    for name, lists in (("factors", head.factors), ("written", head.written)):
        if not all(isinstance(values, list) for values in lists.values()):
            raise ValueError(f"{path}: {name} has a value that is not a list; {AGAIN}")
    factors = {name: [_value(value) for value in values] for name, values in head.factors.items()}
    written = {name: [str(value) for value in values] for name, values in head.written.items()}
    return replace(head, factors=factors, written=written)


def read_results(folder: Path) -> list[Result]:
    """Read the scores.

    Raises:
        ValueError: A line is malformed, or a score occurs twice.
    """
    path = folder / "results.jsonl"
    found: list[Result] = []
    seen = set()
    for row, place in _lines(path):
        r = _told(Result, row, place)
        r = replace(r, factors=_values(r.factors))
        for name in ("value", "standard_error", "low", "high", "best"):
            if _is_endless(getattr(r, name)):
                raise ValueError(f"{place}: {name} is too large; {AGAIN}")
        if r.best is not None and not r.best > 0:
            raise ValueError(f"{place}: best is {r.best!r}, not above 0; {AGAIN}")
        key = (r.run, r.stage, r.panel, r.step, r.inside)
        if key in seen:
            raise ValueError(f"{path}: {r.task} {r.metric} of {r.run} after {r.stage} is there twice; {AGAIN}")
        seen.add(key)
        found.append(r)
    return found


def read_costs(folder: Path) -> list[RunCost]:
    """Read what each run cost.

    Raises:
        ValueError: A line is malformed.
    """
    found = []
    for row, place in _lines(folder / "costs.jsonl"):
        known = _told(RunCost, row, place)
        stages = [_told(StageCost, stage, f"{place}, stage {n}") for n, stage in enumerate(known.stages, 1)]
        found.append(replace(known, stages=stages, factors=_values(known.factors)))
    return found


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run the study first: python -m sftlab study")
    try:
        for row, place in read_objects(path):
            yield _visible(row), place
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start:,}); {AGAIN}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from None


def _told(kind: type[T], row: object, place: str) -> T:
    """Check a line's fields and return them; errors end with what to do."""
    try:
        return checked(kind, row, place)
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from None


def _visible(node: Any) -> Any:
    """Return a copy in which control characters are visible."""
    if isinstance(node, str):
        return visible(node)
    if isinstance(node, list):
        return [_visible(item) for item in node]
    return {visible(key): _visible(item) for key, item in node.items()} if isinstance(node, dict) else node


def _values(factors: dict[str, Any]) -> dict[str, Value]:
    return {name: _value(value) for name, value in factors.items()}


def _value(value: Any) -> Value:
    """Return a factor's value; one that is neither a number nor text is shown as JSON."""
    is_plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return value if is_plain and not _is_endless(value) else json.dumps(value)


def _is_endless(value: Any) -> bool:
    """Return whether a number has no position on an axis."""
    try:
        return isinstance(value, (int, float)) and not math.isfinite(value)
    except OverflowError:
        return True
