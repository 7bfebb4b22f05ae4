"""Files of verdicts compared problem by problem, over the seeds of a study or two models alone.

A file has one line per verdict (``<task>.problems.jsonl``). Every task and extractor is compared by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftlab.results.row import read_objects
from sftlab.results.verdict import VerdictRow
from sftlab.stats.paired import Comparison, compare_values, not_compared

Key = tuple[str, str]  # task, extractor


@dataclass
class Verdicts:
    """Verdicts of one model.

    Attributes:
        name: Their name in messages, such as their file.
        values: By task and extractor, then by problem: the value of each sample.
        prompts: What each problem of a task asks.
    """

    name: str
    values: dict[Key, dict[str, list[float | None]]] = field(default_factory=dict)
    prompts: dict[tuple[str, str], Any] = field(default_factory=dict)


def read_verdicts(path: Path) -> Verdicts:
    """Read one file.

    Raises:
        ValueError: The file is missing, or a line is not a verdict or is a second one on the same answer.
    """
    if not path.is_file():
        there = sorted(p.name for p in path.glob("*.problems.jsonl"))
        hint = f"; in it are {', '.join(there)}" if there else ""
        raise ValueError(f"{path}: no such file; give a <task>.problems.jsonl of an evaluation{hint}")
    found, seen = Verdicts(str(path)), set()
    for line, place in read_objects(path):
        row = VerdictRow.from_dict(line, place)
        key = (row.task, row.uid, row.extractor, row.sample)
        if key in seen:
            raise ValueError(f"{place}: a second verdict on {row.uid}, sample {row.sample}, by {row.extractor}")
        seen.add(key)
        found.values.setdefault((row.task, row.extractor), {}).setdefault(row.uid, []).append(row.value)
        found.prompts[row.task, row.uid] = row.prompts
    return found


def compare(a: Verdicts, b: Verdicts) -> list[Comparison]:
    """Compare the verdicts of two models.

    An extractor that only one of the two has is listed as not compared.

    Raises:
        ValueError: The two have different problems or nothing in common.
    """
    common = [key for key in a.values if key in b.values]
    if not common:
        names = [", ".join(f"{task} by {extractor}" for task, extractor in v.values) or "no verdicts" for v in (a, b)]
        raise ValueError(f"nothing to compare: {a.name} has {names[0]}, {b.name} has {names[1]}")
    for task, extractor in common:
        _require_same_problems(task, extractor, a, b)
    found = [compare_values(*key, a.values[key], b.values[key]) for key in common]
    for one, other in ((a, b), (b, a)):
        found += [not_compared(*key, 0, f"only in {one.name}") for key in one.values if key not in other.values]
    return found


def _require_same_problems(task: str, extractor: str, a: Verdicts, b: Verdicts) -> None:
    uids_a, uids_b = (set(side.values[task, extractor]) for side in (a, b))
    lacking = [
        f"{side.name} lacks {len(absent):,} of them ({', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''})"
        for side, absent in ((a, sorted(uids_b - uids_a)), (b, sorted(uids_a - uids_b)))
        if absent
    ]
    if lacking:
        raise ValueError(
            f"{task}: the files have different problems, {' and '.join(lacking)}; evaluate both on the same"
        )
    for uid in a.values[task, extractor]:
        if a.prompts[task, uid] != b.prompts[task, uid]:
            raise ValueError(f"{task}: problem {uid} does not ask the same in {a.name} and {b.name}")


def compare_over_seeds(a: Sequence[Path], b: Sequence[Path], metric: str) -> Comparison:
    """Compare runs of several seeds problem by problem.

    A problem's values are averaged over the seeds, so that problems stay the unit; if seeds ask different questions
    under one uid, every seed's problem counts by itself.

    Args:
        a: Files of verdicts, one per seed.
        b: Files of the same seeds.
        metric: Metric of the score; see ``that_counts``.

    Raises:
        ValueError: A file is malformed, or the two sides have different problems.
    """
    sides = [[read_verdicts(path) for path in files] for files in (a, b)]
    asked: dict[tuple[str, str], Any] = {}
    apart = any(
        asked.setdefault(key, prompts) != prompts
        for seeds in sides
        for seed in seeds
        for key, prompts in seed.prompts.items()
    )
    found = compare(*(_pooled(seeds, apart) for seeds in sides))
    counted = that_counts([c.extractor for c in found], metric)
    return next(c for c in found if c.extractor == counted)


def that_counts(extractors: Sequence[str], metric: str = "") -> str:
    """Return the extractor of a task that its score uses.

    Args:
        extractors: Extractors in the order of the file of verdicts.
        metric: Metric of the score, which ends in the extractor: ``accuracy/flexible@1``. If none has that name, the
            rating of all turns counts, else the first extractor.
    """
    named = [name for name in extractors if metric == name or metric.endswith(f"/{name}")]
    overall = [name for name in extractors if name.endswith("/overall")]
    return [*sorted(named, key=len, reverse=True), *overall, *extractors][0]


def _pooled(seeds: Sequence[Verdicts], apart: bool) -> Verdicts:
    """Return all seeds as samples of the same problems, or, if ``apart``, as problems of their own."""
    pooled = Verdicts(seeds[0].name)
    for number, seed in enumerate(seeds):
        start = f"{number}:" if apart else ""
        for key, problems in seed.values.items():
            mine = pooled.values.setdefault(key, {})
            for uid, samples in problems.items():
                mine.setdefault(start + uid, []).extend(samples)
        pooled.prompts |= {(task, start + uid): prompts for (task, uid), prompts in seed.prompts.items()}
    return pooled
