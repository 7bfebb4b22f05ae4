"""The section on the replay fraction k: score against k, the Pareto front, the best k for a user's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sftlab.report.evidence import Evidence, Point, number_of, text_of
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import LinePanel, front_figure, line_figure
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Section, interval_words, panel_label, panel_title
from sftlab.report.sections.growth import Lines, Rest, line_numbers, points_in, rest_text
from sftlab.report.sections.mixing import line_table
from sftlab.stats.interval import normal, student
from sftlab.stats.tradeoff import best_choice, pareto_front

Weights = Mapping[str, float]


def replay(evidence: Evidence, weights: Weights) -> Section:
    """Score against k for each ability, and what to choose.

    Args:
        evidence: The study.
        weights: What each ability counts in the choice of k; 1 where left out.

    Raises:
        ValueError: A weight names no ability, is negative, or all are 0.
    """
    section = Section("k", "The replay fraction k")
    configs = [c for c in evidence.configs if evidence.without(c, "k")]
    section.missing = evidence.missing(evidence.configs)
    if not configs or not evidence.panels:
        section.missing.append("no run with a factor named k has a score")
        return section
    check_weights(evidence, weights)
    lines: dict[Panel, Lines] = {
        panel: {
            rest_text(rest, config if len(configs) > 1 else "") or config: evidence.line(panel, config, "k", rest)
            for config in configs
            for rest in evidence.without(config, "k")
        }
        for panel in evidence.panels
    }
    grid = [[LinePanel(panel_title(p), panel_label(p), p.best, found) for p, found in lines.items()]]
    caption = "Score against k on a log-2 axis; k = 0, mixed sequential, stands left of the break. "
    caption += interval_words(evidence, points_in(lines.values()))
    title = "Score against the replay fraction k"
    section.parts.append(Drawing("k", title, caption, line_figure(grid, "replay fraction k"), line_numbers("k", lines)))
    section.parts.append(line_table("k-table", title, "k", lines))
    for config in configs:
        for rest in evidence.without(config, "k"):
            _choose(evidence, section, config, rest, weights)
    return section


def check_weights(evidence: Evidence, weights: Weights) -> None:
    """Refuse weights that mean nothing."""
    abilities = [panel.ability for panel in evidence.panels]
    unknown = sorted(set(weights) - set(abilities))
    if unknown:
        raise ValueError(f"--weights: no ability {', '.join(unknown)}; the abilities are {', '.join(abilities)}")
    values = [weights.get(ability, 1.0) for ability in abilities]
    if min(values, default=1) < 0 or not sum(values) > 0 or not all(map(math.isfinite, values)):
        raise ValueError("--weights: weights must be finite, none below 0 and one above 0")


def general_abilities(evidence: Evidence, config: str) -> list[str]:
    """Abilities that the last stage trains in full at the smallest k; the others are the specialised ones."""
    rows = [r for r in evidence.final if r.config == config and "k" in r.factors]
    ks = [number_of(r.factors["k"], "k") for r in rows]
    last = {r.ability for r, k in zip(rows, ks, strict=True) if r.full and k == min(ks)}
    known = list(dict.fromkeys(panel.ability for panel in evidence.panels))
    found = [name for name in known if name in last]
    return found if 0 < len(found) < len(known) else [name for name in known if name == "general"]


def _choose(evidence: Evidence, section: Section, config: str, rest: Rest, weights: Weights) -> None:
    points = {panel: dict(evidence.line(panel, config, "k", rest)) for panel in evidence.panels}
    ks = sorted(set.intersection(*(set(mine) for mine in points.values())))
    if len(ks) < 2:
        section.missing.append(f"two values of k with every score ({config} {rest_text(rest)})")
        return
    best_A = np.array([panel.best for panel in evidence.panels], dtype=float)
    scores_KA, errors_KA = (
        np.array([[getattr(points[p][k], name) for p in evidence.panels] for k in ks]) / best_A
        for name in ("value", "error")
    )
    weight_A = np.array([weights.get(panel.ability, 1.0) for panel in evidence.panels])
    choice = best_choice(scores_KA, errors_KA, weight_A)
    general = general_abilities(evidence, config)
    label = f" ({rest_text(rest)})" if rest else ""
    parts = _sides(evidence, points, ks, general)
    front = pareto_front(np.array([[p.value for p in pair] for pair in parts])) if parts else np.zeros(len(ks), bool)
    name = "-".join(["k-front", *(text_of(value).replace("/", "-") for _, value in rest)])
    if parts:
        marks = [(text_of(k), x, y, bool(f)) for k, (x, y), f in zip(ks, parts, front, strict=True)]
        section.parts.append(_front_drawing(name, label, marks, text_of(ks[choice.index]), general))
    table = _choice_table(name, label, ks, choice.utility_K, choice.share_best_K, front if parts else None, weights)
    section.parts.append(table)
    best = ks[choice.index]
    rivals = [text_of(k) for k, share in zip(ks, choice.share_best_K, strict=True) if share >= 0.05 and k != best]
    sure = f"; best in {choice.share_best_K[choice.index]:.0%} of resamples"
    others = f", also in question: k = {', '.join(rivals)}" if rivals else ""
    section.findings.append(f"Best k{label} for {_weight_words(evidence, weights)}: **{text_of(best)}**{sure}{others}.")
    if parts:
        on = ", ".join(text_of(k) for k, f in zip(ks, front, strict=True) if f)
        section.findings.append(f"No k beats these{label} in both specialised and general score (Pareto front): {on}.")


def _weight_words(evidence: Evidence, weights: Weights) -> str:
    values = {panel.ability: weights.get(panel.ability, 1.0) for panel in evidence.panels}
    if len(set(values.values())) == 1:
        return "equal weights"
    return "weights " + ", ".join(f"{name}={value:g}" for name, value in values.items())


def _sides(
    evidence: Evidence, points: dict[Panel, dict[float, Point]], ks: Sequence[float], general: Sequence[str]
) -> list[tuple[Point, Point]]:
    """Specialised and general score of each k, as means over abilities of scores divided by their best."""
    sides = [[p for p in evidence.panels if (p.ability in general) == is_general] for is_general in (False, True)]
    if not all(sides):
        return []
    return [(_mean_point(points, sides[0], k), _mean_point(points, sides[1], k)) for k in ks]


def _mean_point(points: dict[Panel, dict[float, Point]], panels: Sequence[Panel], k: float) -> Point:
    mine = [(points[panel][k], panel.best or 1.0) for panel in panels]
    seeds = set.intersection(*(set(p.by_seed) for p, _ in mine))
    by_seed = {s: sum(p.by_seed[s] / best for p, best in mine) / len(mine) for s in sorted(seeds)}
    value = sum(p.value / best for p, best in mine) / len(mine)
    error = math.sqrt(sum((p.error / best) ** 2 for p, best in mine)) / len(mine)
    low, high = normal(value, error)
    if len(by_seed) > 1:
        over_seeds = student(list(by_seed.values()))
        value, low, high = over_seeds.value, over_seeds.low, over_seeds.high
    return Point(value, max(0.0, low), min(1.0, high), error, by_seed)


def _front_drawing(
    name: str, label: str, marks: list[tuple[str, Point, Point, bool]], best: str, general: Sequence[str]
) -> Drawing:
    caption = (
        f"Mean of the specialised scores against that of {' and '.join(general)}, one point for each k, with 95 % "
        "intervals. The line joins the Pareto front: no k is as good by both and better by one. Ringed: the best k "
        "for the weights."
    )
    numbers: list[dict[str, Cell]] = [
        {"k": k, "specialised": x.value, "general": y.value, "on_front": f, "best": k == best} for k, x, y, f in marks
    ]
    figure = front_figure(marks, "specialised abilities (share of the best)", " and ".join(general), best)
    return Drawing(name, f"Specialised against general{label}", caption, figure, numbers)


def _choice_table(
    name: str,
    label: str,
    ks: Sequence[float],
    utility_K: np.ndarray,
    share_K: np.ndarray,
    front: np.ndarray | None,
    weights: Weights,
) -> Table:
    rows = [
        [text_of(k), f"{u:.1%}", f"{share:.0%}", "-" if front is None else "yes" if front[i] else ""]
        for i, (k, u, share) in enumerate(zip(ks, utility_K, share_K, strict=True))
    ]
    columns = zip(ks, utility_K.tolist(), share_K.tolist(), strict=True)
    numbers: list[dict[str, Cell]] = [{"k": k, "weighted_mean": u, "share_best": share} for k, u, share in columns]
    named = ", ".join(f"{k}={v:g}" for k, v in weights.items()) or "all 1"
    notes = [
        f"Weights: {named}. Weighted mean of scores, each divided by its best.",
        "Best in: part of the resamples (normal, by the standard errors) in which this k has the highest mean.",
    ]
    header = ["k", "weighted mean", "best in", "on the front"]
    return Table(f"{name}-choice", f"Which k{label}", header, rows, notes, numbers)
