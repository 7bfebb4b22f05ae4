"""The best of some settings for a reader's weights, how sure the choice is, and what each setting cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.report.budgets import NAMES, budget_cells, budget_numbers
from sftlab.report.evidence import Budget, Evidence, Point
from sftlab.report.exhibit import Cell, Table
from sftlab.stats.interval import normal, student
from sftlab.stats.tradeoff import Choice, best_choice

RIVAL = 0.05  # a setting that is the best in at least this share of the resamples is still in question


@dataclass(frozen=True, eq=False)
class Setting:
    """A setting to choose from.

    Attributes:
        label: Its name in the report.
        points: Its score in every panel of the study.
        budget: What it was trained on.
        value: Its value in a CSV, if that is a number.
    """

    label: str
    points: Sequence[Point]
    budget: Budget
    value: Cell = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """Settings with the evidence for each.

    Attributes:
        settings: All of them.
        choice: Their weighted means, and how often each is the best.
        weights: The reader's weights.
    """

    settings: Sequence[Setting]
    choice: Choice
    weights: dict[str, float]

    @property
    def best(self) -> str:
        """Label of the best; empty if all are equal."""
        return "" if self.choice.is_tie else self.settings[self.choice.index].label

    @property
    def nothing_to_choose(self) -> str:
        """Say why there is no best, if there is none."""
        value = float(self.choice.utility_K[0])
        reason = "train longer, or ask easier or more problems" if value < 0.5 else "ask harder or more problems"
        same = f"all {len(self.settings)} have the same weighted mean, {value:.1%}"
        return f"{same}: {reason}" if self.choice.is_tie else ""

    def doubts(self, before: str = "") -> str:
        """Say how sure the choice is, and what else is in question; ``before`` precedes the others' labels."""
        pairs = zip(self.settings, self.choice.share_best_K, strict=True)
        rivals = [setting.label for setting, share in pairs if share >= RIVAL and setting.label != self.best]
        sure = f"best in {self.choice.share_best_K[self.choice.index]:.0%} of resamples"
        return sure + (f", also in question: {before}{', '.join(rivals)}" if rivals else "")

    def table(self, name: str, title: str, what: str, front: np.ndarray | None, most: int | None = None) -> Table:
        """Return every setting with its weighted mean, how often it is the best, and its budget.

        Args:
            name: Name of its files.
            title: Title above the table.
            what: Header of the first column.
            front: Which settings are on the Pareto front; None if there is none.
            most: Number of rows shown; the CSV has all.
        """
        order: Sequence[int] = range(len(self.settings))
        if most is not None:
            order = sorted(order, key=lambda i: -self.choice.utility_K[i])
        rows: list[list[str]] = []
        numbers: list[dict[str, Cell]] = []
        for i in order:
            setting = self.settings[i]
            utility, share = float(self.choice.utility_K[i]), float(self.choice.share_best_K[i])
            is_on = "-" if front is None else "yes" if front[i] else ""
            often = "-" if self.choice.is_tie else f"{share:.0%}"
            rows.append([setting.label, f"{utility:.1%}", often, is_on, *budget_cells(setting.budget)])
            label = setting.label if setting.value is None else setting.value
            about: dict[str, Cell] = {what: label, "weighted_mean": utility, "share_best": share}
            numbers.append(about | budget_numbers(setting.budget))
        named = ", ".join(f"{k}={v:g}" for k, v in self.weights.items()) or "all 1"
        notes = [
            f"Weights: {named}. Weighted mean of scores, each divided by its best.",
            f"Best in: share of the resamples (normal, by the standard errors) in which this {what} is the highest.",
            "Tokens, supervised tokens and steps: of all stages, including those reused from other runs.",
        ]
        if most is not None and len(rows) > most:
            notes.append(f"The best {most} of {len(rows)}; the CSV has all.")
        header = [what, "weighted mean", "best in", "on the front", *NAMES.values()]
        return Table(name, title, header, rows[:most], notes, numbers)


def choose(evidence: Evidence, settings: Sequence[Setting]) -> Chosen:
    """Choose the best of some settings for the weights of the report's reader."""
    best_A = np.array([panel.best for panel in evidence.panels], dtype=float)
    scores_KA, errors_KA = (
        np.array([[getattr(point, name) for point in setting.points] for setting in settings]) / best_A
        for name in ("value", "error")
    )
    weight_A = np.array([evidence.weights.get(panel.ability, 1.0) for panel in evidence.panels])
    return Chosen(settings, best_choice(scores_KA, errors_KA, weight_A), dict(evidence.weights))


def weighted_point(points: Sequence[Point], best: Sequence[float], weights: Sequence[float] | None = None) -> Point:
    """Compute the mean over abilities of scores divided by their best, with an interval over the common seeds."""
    shares = [w / sum(weights) for w in weights] if weights else [1 / len(points)] * len(points)
    mine = [(p, share / top) for p, share, top in zip(points, shares, best, strict=True)]
    seeds = set.intersection(*(set(p.by_seed) for p, _ in mine))
    by_seed = {s: sum(p.by_seed[s] * share for p, share in mine) for s in sorted(seeds)}
    value = sum(p.value * share for p, share in mine)
    error = math.sqrt(sum((p.error * share) ** 2 for p, share in mine))
    low, high = normal(value, error)
    if len(by_seed) > 1:
        over_seeds = student(list(by_seed.values()))
        value, low, high = over_seeds.value, over_seeds.low, over_seeds.high
    runs = {seed: run for seed, run in points[0].runs.items() if seed in by_seed}
    return Point(value, max(0.0, low), min(1.0, high), error, by_seed, runs)


def weight_words(evidence: Evidence) -> str:
    """Return the weights in words."""
    values = {ability: evidence.weights.get(ability, 1.0) for ability in evidence.abilities}
    if len(set(values.values())) == 1:
        return "equal weights"
    return "weights " + ", ".join(f"{name}={value:g}" for name, value in values.items())


def check_weights(evidence: Evidence) -> None:
    """Refuse invalid weights.

    Raises:
        ValueError: A weight names no ability, is negative, or all are 0.
    """
    if not evidence.weights:
        return
    abilities = evidence.abilities
    if not abilities:
        raise ValueError(f"--weights: {evidence.study} has no score yet, so there is nothing to weigh")
    unknown = sorted(set(evidence.weights) - set(abilities))
    if unknown:
        raise ValueError(f"--weights: no ability {', '.join(unknown)}; the abilities are {', '.join(abilities)}")
    values = [evidence.weights.get(ability, 1.0) for ability in abilities]
    if min(values) < 0 or not sum(values) > 0 or not all(map(math.isfinite, values)):
        raise ValueError("--weights: weights must be finite, none below 0 and one above 0")
