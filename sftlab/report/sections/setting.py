"""Which setting of a study is best for the reader's weights, whatever its factors are, and at which budget."""

from __future__ import annotations

import numpy as np

from sftlab.report.budgets import budget_warning
from sftlab.report.choosing import Chosen, Setting, choose, weight_words, weighted_point
from sftlab.report.evidence import Evidence, Point
from sftlab.report.exhibit import Cell
from sftlab.report.figures import dot_figure
from sftlab.report.fronts import budget_figure
from sftlab.report.section import Drawing, Figure, Section, interval_words
from sftlab.report.text import short_count, some_of
from sftlab.stats.tradeoff import pareto_front

_MOST = 24  # settings in the table and in a dot figure
_MOST_NAMED = 8


class BestSetting(Figure):
    """All settings of a study by the weighted mean of their scores, the Pareto front over abilities, the budgets."""

    def section(self, evidence: Evidence) -> Section:
        """Show nothing if fewer than two settings have every score."""
        section = Section("setting", "Which setting")
        groups = [g for g in evidence.groups if all(evidence.point(p, g) for p in evidence.panels)]
        if len(groups) < 2 or not evidence.panels:
            return section
        settings = [
            Setting(str(g), [p for panel in evidence.panels if (p := evidence.point(panel, g))], evidence.budget(g))
            for g in groups
        ]
        chosen = choose(evidence, settings)
        front = pareto_front(np.array([[p.value for p in setting.points] for setting in settings]))
        if chosen.nothing_to_choose:
            section.findings.append(f"Nothing can be chosen for {weight_words(evidence)}: {chosen.nothing_to_choose}.")
            section.parts.append(chosen.table("setting-choice", "All settings", "setting", None, _MOST))
            return section
        means = self._means(evidence, settings)
        section.parts.append(self._drawing(chosen, means))
        section.parts.append(chosen.table("setting-choice", "Which setting", "setting", front, _MOST))
        best = chosen.choice.utility_K[chosen.choice.index]
        section.findings.append(
            f"Best setting for {weight_words(evidence)}: **{chosen.best}** ({best:.1%}); {chosen.doubts()}."
        )
        section.findings += _cheaper_words(chosen)
        on = [setting.label for setting, is_on in zip(settings, front, strict=True) if is_on]
        section.findings.append(f"No setting beats these in every ability (Pareto front): {some_of(on)}.")
        section.warnings += budget_warning(evidence, groups)
        return section

    def _means(self, evidence: Evidence, settings: list[Setting]) -> list[Point]:
        best = [panel.best or 1.0 for panel in evidence.panels]
        weights = [evidence.weights.get(panel.ability, 1.0) for panel in evidence.panels]
        return [weighted_point(setting.points, best, weights) for setting in settings]

    def _drawing(self, chosen: Chosen, means: list[Point]) -> Drawing:
        """Draw against tokens if budgets are known and differ; else a dot for each setting."""
        tokens = [setting.budget.tokens for setting in chosen.settings]
        known = [count for count in tokens if count is not None]
        numbers: list[dict[str, Cell]] = [
            {"setting": s.label, "weighted_mean": p.value, "low": p.low, "high": p.high, "tokens": s.budget.tokens}
            for s, p in zip(chosen.settings, means, strict=True)
        ]
        if len(known) == len(tokens) and max(known) > min(known):
            marks = [
                (s.label, count, p, is_best)
                for s, count, p, is_best in zip(chosen.settings, known, means, at_budget(chosen), strict=True)
            ]
            caption = (
                "Weighted mean of the scores, each divided by its best, against all tokens trained. The staircase "
                "joins the settings that no cheaper one beats; names that would overlap are left out. Ringed: the "
                f"best. {interval_words(means)}"
            )
            figure, spots = budget_figure(marks, chosen.best)
            return Drawing("setting", "What a budget buys", caption, figure, numbers, spots)
        order = sorted(range(len(means)), key=lambda i: -chosen.choice.utility_K[i])[:_MOST]
        names = [chosen.settings[i].label for i in order]
        figure, spots = dot_figure([("weighted mean", 1.0, [means[i] for i in order])], names)
        caption = f"Weighted mean of the scores, each divided by its best. {interval_words(means)}"
        return Drawing("setting", "Settings by weighted mean", caption, figure, numbers, spots)


def at_budget(chosen: Chosen) -> list[bool]:
    """Return whether no setting with as many tokens or fewer has a higher weighted mean; False if unknown."""
    pairs = [(s.budget.tokens, float(u)) for s, u in zip(chosen.settings, chosen.choice.utility_K, strict=True)]
    known = [(tokens, utility) for tokens, utility in pairs if tokens is not None]
    return [
        tokens is not None and not any(t <= tokens and (u, -t) > (utility, -tokens) for t, u in known)
        for tokens, utility in pairs
    ]


def _cheaper_words(chosen: Chosen) -> list[str]:
    """Describe the settings that are best at a smaller budget than the best of all."""
    top = chosen.settings[chosen.choice.index].budget.tokens
    triples = zip(chosen.settings, chosen.choice.utility_K, at_budget(chosen), strict=True)
    cheaper = sorted(
        (s.budget.tokens, f"{s.label} ({short_count(s.budget.tokens)} tokens, {u:.1%})")
        for s, u, is_best in triples
        if is_best and s.budget.tokens is not None and top is not None and s.budget.tokens < top
    )
    if not cheaper or top is None:
        return []
    named = [words for _, words in cheaper[-_MOST_NAMED:]]
    return [f"With fewer tokens than its {short_count(top)}, the best are: {', '.join(named)}."]
