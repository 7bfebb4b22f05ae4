"""Two result files compared problem by problem: the same problems, so most of the noise cancels.

A file has one line per verdict (``<task>.problems.jsonl``). Every task and extractor is compared by itself; values of
several samples of a problem are averaged first, so problems are the unit.

    every value 0 or 1     McNemar's exact test (McNemar 1947): of the problems that only one of the two solves, is the
                           split further from even than a fair coin's? Interval of Bonett and Price (2012).
    other values           paired bootstrap over problems (Efron and Tibshirani 1993, chapters 13 and 16): percentile
                           interval, p from the differences shifted to mean 0.

A difference counts as more than noise when p < 0.05 and the 95 % interval does not hold 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 10_000
Z = 1.959964
Values = dict[tuple[str, str], dict[str, list[float | None]]]  # (task, extractor) -> uid -> value of each sample


@dataclass(frozen=True)
class Comparison:
    """File b against file a by one extractor of one task.

    Attributes:
        num_problems: Problems compared.
        num_missing: Problems without a verdict in one of the files; they are not compared.
        mean_a: Mean over the problems compared.
        mean_b: The same of the other file.
        difference: ``mean_b - mean_a``; ``low`` and ``high`` are its 95 % interval.
        p_value: Two-sided.
        method: How interval and p were found; or why there are none.
    """

    task: str
    extractor: str
    num_problems: int
    num_missing: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    method: str

    @property
    def inside_noise(self) -> bool:
        """Whether a difference like this is to be expected between equals."""
        return not (self.p_value < 0.05 and not self.low <= 0 <= self.high)

    @property
    def words(self) -> str:
        """The verdict on the difference."""
        if math.isnan(self.p_value):
            return "not compared"
        return "inside noise" if self.inside_noise else "b is better" if self.difference > 0 else "b is worse"


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compare two files of verdicts.

    An extractor that only one of the files has is listed as not compared.

    Raises:
        ValueError: A file is malformed, the two have different problems or nothing in common.
    """
    values_a, prompts_a = _read(a)
    values_b, prompts_b = _read(b)
    common = [key for key in values_a if key in values_b]
    if not common:
        names = [", ".join(f"{task} by {extractor}" for task, extractor in v) for v in (values_a, values_b)]
        raise ValueError(
            f"nothing to compare: {a} has {names[0] or 'no verdicts'}, {b} has {names[1] or 'no verdicts'}"
        )
    for key in common:
        _require_same_problems(key[0], a, b, values_a[key], values_b[key])
        for uid in values_a[key]:
            if prompts_a[key[0], uid] != prompts_b[key[0], uid]:
                raise ValueError(f"{key[0]}: problem {uid} does not ask the same in {a} and {b}")
    found = [_compare(key, values_a[key], values_b[key]) for key in common]
    alone = [(key, a) for key in values_a if key not in values_b] + [
        (key, b) for key in values_b if key not in values_a
    ]
    nan = math.nan
    return found + [Comparison(*key, 0, 0, nan, nan, nan, nan, nan, nan, f"only in {path}") for key, path in alone]


def _read(path: Path) -> tuple[Values, dict[tuple[str, str], Any]]:
    """Values by extractor, problem and sample; and what each problem asks."""
    if not path.is_file():
        inside = sorted(p.name for p in path.glob("*.problems.jsonl"))
        hint = f"; in it are {', '.join(inside)}" if inside else ""
        raise ValueError(f"{path}: no such file; give a <task>.problems.jsonl of an evaluation{hint}")
    values: Values = {}
    prompts: dict[tuple[str, str], Any] = {}
    seen = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            task, uid, extractor, sample, value = (row[k] for k in ("task", "uid", "extractor", "sample", "value"))
            number_or_none = None if value is None else float(value)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a verdict ({type(error).__name__}: {error})") from None
        if (task, uid, extractor, sample) in seen:
            raise ValueError(f"{path}, line {number}: a second verdict on {uid}, sample {sample}, by {extractor}")
        seen.add((task, uid, extractor, sample))
        values.setdefault((task, extractor), {}).setdefault(uid, []).append(number_or_none)
        prompts[task, uid] = row.get("prompts")
    return values, prompts


def _require_same_problems(task: str, a: Path, b: Path, values_a: dict[str, Any], values_b: dict[str, Any]) -> None:
    lacking = [
        f"{path} lacks {len(absent):,} of them ({', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''})"
        for path, absent in ((a, sorted(set(values_b) - set(values_a))), (b, sorted(set(values_a) - set(values_b))))
        if absent
    ]
    if lacking:
        raise ValueError(
            f"{task}: the files have different problems, {' and '.join(lacking)}; evaluate both on the same"
        )


def _compare(key: tuple[str, str], values_a: dict[str, Any], values_b: dict[str, Any]) -> Comparison:
    pairs = [(values_a[uid], values_b[uid]) for uid in values_a]
    whole = [(sum(x) / len(x), sum(y) / len(y)) for x, y in pairs if None not in x and None not in y]
    pairs_N2 = np.array(whole, dtype=np.float64).reshape(-1, 2)
    n, missing = len(whole), len(pairs) - len(whole)
    if n == 0:
        nan = math.nan
        return Comparison(*key, 0, missing, nan, nan, nan, nan, nan, nan, "no problem has a verdict in both")
    mean_a, mean_b = pairs_N2.mean(0).tolist()
    if np.isin(pairs_N2, (0.0, 1.0)).all():
        only_a = int(((pairs_N2[:, 0] == 1) & (pairs_N2[:, 1] == 0)).sum())
        only_b = int(((pairs_N2[:, 1] == 1) & (pairs_N2[:, 0] == 0)).sum())
        low, high = paired_interval(only_a, only_b, n)
        p, method = mcnemar(only_a, only_b), f"McNemar exact: {only_a} only a, {only_b} only b"
    else:
        low, high, p = paired_bootstrap(pairs_N2[:, 1] - pairs_N2[:, 0])
        method = f"paired bootstrap, {RESAMPLES:,} resamples"
    return Comparison(*key, n, missing, mean_a, mean_b, mean_b - mean_a, low, high, p, method)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: twice the smaller tail of Binomial(only_a + only_b, 1/2), at most 1."""
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_interval(only_a: int, only_b: int, num_problems: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, b minus a.

    The adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37), which holds its level at small n
    and where the files never differ.
    """
    a, b = (only_a + 1) / (num_problems + 2), (only_b + 1) / (num_problems + 2)
    half = Z * math.sqrt((a + b - (b - a) ** 2) / (num_problems + 2))
    return max(-1.0, b - a - half), min(1.0, b - a + half)


def paired_bootstrap(differences_N: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Low and high end of the 95 % interval of the mean difference, and p of a mean of 0.

    Args:
        differences_N: b minus a for each problem.
        seed: Of the resamples; the same files always give the same answer.
    """
    n = len(differences_N)
    if n < 2:
        return -math.inf, math.inf, 1.0
    generator = np.random.default_rng(seed)
    chunk = max(1, 1_000_000 // n)  # resamples drawn at once: memory stays small
    means: list[np.ndarray] = []
    for start in range(0, RESAMPLES, chunk):
        picked = generator.integers(n, size=(min(chunk, RESAMPLES - start), n))
        means.append(differences_N[picked].mean(1))
    means_R, mean = np.concatenate(means), float(differences_N.mean())
    low, high = np.quantile(means_R, (0.025, 0.975)).tolist()
    # 1e-12: a resample equal to the data itself must count in spite of rounding.
    extreme = int((np.abs(means_R - mean) >= abs(mean) - 1e-12).sum())
    return low, high, (extreme + 1) / (RESAMPLES + 1)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A printable table, one row per comparison."""
    from rich.table import Table

    table = Table(title="b against a, problem by problem", title_justify="left")
    for column in ("task", "extractor", "problems", "a", "b", "b - a", "95 % interval", "p", "", "method"):
        table.add_column(column, justify="left" if column in ("task", "extractor", "", "method") else "right")
    for c in comparisons:
        if math.isnan(c.p_value):
            table.add_row(c.task, c.extractor, *["-"] * 6, c.words, c.method)
            continue
        problems = f"{c.num_problems:,}" + (f" ({c.num_missing:,} missing)" if c.num_missing else "")
        interval, p = f"{c.low:+.4f} to {c.high:+.4f}", f"{c.p_value:.4f}" if c.p_value >= 1e-4 else "< 0.0001"
        numbers = (f"{c.mean_a:.4f}", f"{c.mean_b:.4f}", f"{c.difference:+.4f}", interval, p)
        table.add_row(c.task, c.extractor, problems, *numbers, c.words, c.method)
    return table
