"""What settings were trained on, beside their scores: a better one may only have had more."""

from __future__ import annotations

from collections.abc import Sequence

from sftlab.report.evidence import Budget, Evidence, Group
from sftlab.report.exhibit import Cell
from sftlab.report.text import short_count

TOLERANCE = 0.02  # budgets within this share count as equal: packing and rounding of steps cause such differences
NAMES = {"tokens": "tokens", "supervised_tokens": "supervised tokens", "steps": "steps"}


def budget_warning(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """Return a sentence if these settings differ in budget; empty if they do not, or if it is unknown."""
    wanted = set(groups)
    budgets = {group: evidence.budget(group) for group in evidence.groups if group in wanted}
    spans = []
    for name, words in NAMES.items():
        known = {group: value for group in budgets if (value := getattr(budgets[group], name)) is not None}
        if len(known) > 1 and max(known.values()) > (1 + TOLERANCE) * min(known.values()):
            least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            spans.append(f"{short_count(known[least])} ({least}) to {short_count(known[most])} {words} ({most})")
    if not spans:
        return []
    return [f"Budgets differ: {'; '.join(spans)}. A part of any difference may be the amount of training."]


def budget_cells(budget: Budget) -> list[str]:
    """Return the columns of a table, in the order of ``NAMES``."""
    values = [getattr(budget, name) for name in NAMES]
    return ["-" if value is None else f"{value:,}" for value in values]


def budget_numbers(budget: Budget) -> dict[str, Cell]:
    """Return the columns of a CSV."""
    return {name: getattr(budget, name) for name in NAMES}
