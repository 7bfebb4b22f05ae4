"""What each stage taught and made forget, and the retained share of the specialists' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.report.evidence import SPECIALISTS, Evidence, Group, is_number, number_of
from sftlab.report.exhibit import Cell, Table
from sftlab.report.heat import HeatBlock, heat_figure
from sftlab.report.rows import HELD_OUT, Value
from sftlab.report.section import Drawing, Figure, Section
from sftlab.report.text import number, with_interval
from sftlab.stats.forgetting import PerAbility, ScoreMatrix, backward_transfer, forgetting, retention
from sftlab.stats.interval import Estimate, student

MAX_SINGLE_STAGE = 24  # groups with one stage in the heat map: they forget nothing, and a grid has dozens
_TITLE = "What each stage taught and made forget"
MAX_GROUPS = 60  # groups in the heat map: a longer picture cannot be opened


class Forgetting(Figure):
    """The matrix R[stage, ability] of each group, with backward transfer, forgetting and retention.

    Args:
        single: Configs that train one ability alone, ``{ability}`` standing for its name; the basis of retention.
    """

    config_arguments = ("single",)

    def __init__(self, single: str | Sequence[str] = SPECIALISTS) -> None:
        self.single = (single,) if isinstance(single, str) else tuple(single)

    def section(self, evidence: Evidence) -> Section:
        """Show only a title if no run has a score."""
        matrices = {group: found for group in evidence.groups if (found := _matrices(evidence, group))}
        staged = [g for g, found in matrices.items() if any(len(m.stages) > 1 for m in found.values())]
        single = [g for g in matrices if g not in staged]
        section = Section("forgetting", _TITLE if staged else "What each run scored")
        shown = [g for g in matrices if g in staged or len(single) <= MAX_SINGLE_STAGE]
        if len(single) > MAX_SINGLE_STAGE:
            section.lead = f"{len(single)} groups of one stage are not drawn: nothing can be forgotten in them."
        if len(shown) > MAX_GROUPS:
            section.lead += f" Of {len(shown)} groups the first {MAX_GROUPS} are drawn; the tables have all."
        if shown:
            section.parts.append(_heat(evidence, {g: matrices[g] for g in shown[:MAX_GROUPS]}))
        if staged:
            section.parts.append(_change_table(evidence, {g: matrices[g] for g in staged}))
            section.findings += _loss_words(evidence, {g: matrices[g] for g in staged})
        specialists = _specialist_scores(evidence, self.single)
        if specialists:
            section.parts.append(_retention_table(evidence, matrices, specialists, section, self.single))
        return section


def _matrices(evidence: Evidence, group: Group) -> dict[int, ScoreMatrix]:
    """Return R by seed; every ability by its first headline task."""
    tasks = {panel.ability: panel.task for panel in reversed(evidence.panels)}
    mine = [r for r in evidence.results_of(group) if r.headline and not r.inside and r.value is not None]
    mine = [r for r in mine if r.task != HELD_OUT and tasks.get(r.ability) == r.task]
    found = {}
    for seed in sorted({r.seed for r in mine}):
        own = sorted((r for r in mine if r.seed == seed), key=lambda r: r.stage_index)
        full = {r.stage: [x.ability for x in own if x.stage == r.stage and x.full] for r in own}
        best = {r.ability: r.best or 1.0 for r in own}
        table = [{"stage": r.stage, "ability": r.ability, "value": r.value} for r in own]
        found[seed] = ScoreMatrix.from_rows(table, full, best)
    return found


def _heat(evidence: Evidence, matrices: dict[Group, dict[int, ScoreMatrix]]) -> Drawing:
    abilities = evidence.abilities
    blocks, numbers = [], []
    configs = [group.config for group in matrices]
    is_staged = any(len(m.stages) > 1 for by_seed in matrices.values() for m in by_seed.values())
    for group, by_seed in matrices.items():
        first = next(iter(by_seed.values()))
        share_SA = np.full((len(first.stages), len(abilities)), math.nan)
        text_SA = [["" for _ in abilities] for _ in first.stages]
        lines_SA: list[list[list[str]]] = [[[] for _ in abilities] for _ in first.stages]
        for i, stage in enumerate(first.stages):
            for j, ability in enumerate(abilities):
                value = _mean_cell(by_seed, stage, ability)
                if math.isnan(value):
                    continue
                best, star = first.best_of(ability), "*" * (ability in first.full[i])
                share_SA[i, j] = value / best
                text_SA[i][j] = (f"{100 * value:.1f}" if best == 1 else f"{value:.2f}") + star * is_staged
                lines_SA[i][j] = _cell_lines(group, by_seed, stage, ability, best, bool(star))
                about: dict[str, Cell] = {"group": str(group), "stage": stage, "ability": ability, "mean": value}
                numbers.append(about | {"trained_in_full": bool(star), "num_seeds": len(by_seed)})
        name = group.config if len(set(configs)) == len(configs) else str(group)
        blocks.append(HeatBlock(name, list(first.stages), share_SA, text_SA, lines_SA))
    rows = "stage (rows)" if is_staged else "run (rows)"
    star = " A star: the stage trained on all data of the ability, not on a fraction of it." if is_staged else ""
    caption = (
        f"Score of every ability (columns) after every {rows}, mean over seeds; rates in percent.{star} Colour: share "
        "of the best possible score."
    )
    figure, spots = heat_figure(blocks, abilities)
    return Drawing(
        "forgetting", "Scores after each stage" if is_staged else "Scores of each run", caption, figure, numbers, spots
    )


def _mean_cell(by_seed: dict[int, ScoreMatrix], stage: str, ability: str) -> float:
    values = _cell_values(by_seed, stage, ability).values()
    return sum(values) / len(values) if values else math.nan


def _cell_values(by_seed: dict[int, ScoreMatrix], stage: str, ability: str) -> dict[int, float]:
    return {
        seed: float(m.scores_SA[m.stages.index(stage), m.abilities.index(ability)])
        for seed, m in by_seed.items()
        if stage in m.stages and ability in m.abilities
    }


def _cell_lines(
    group: Group, by_seed: dict[int, ScoreMatrix], stage: str, ability: str, best: float, in_full: bool
) -> list[str]:
    """Return the tooltip of a cell."""
    values = _cell_values(by_seed, stage, ability)
    named = [f"seed {seed}: {number(value, best)}" for seed, value in values.items()]
    trained = ["trained in full by this stage"] if in_full else []
    return [f"{group}, {ability} after {stage}", number(sum(values.values()) / len(values), best), *trained, *named]


def _over_seeds(
    by_seed: dict[int, ScoreMatrix], ability: str, measure: Callable[[ScoreMatrix], PerAbility]
) -> Estimate:
    """Compute mean and interval of a measure of an ability over seeds; nan if no seed has it.

    Two seeds have no interval: they may agree by chance, which would give width zero.
    """
    values = [v for m in by_seed.values() if (v := measure(m).get(ability)) is not None and not math.isnan(v)]
    if len(values) > 2:
        return student(values)
    return Estimate(sum(values) / len(values) if values else math.nan)


def _change_table(evidence: Evidence, matrices: dict[Group, dict[int, ScoreMatrix]]) -> Table:
    abilities = evidence.abilities
    rows, numbers = [], []
    for group, by_seed in matrices.items():
        best = next(iter(by_seed.values())).best_of
        for name, measure in (("backward transfer", backward_transfer), ("forgetting", forgetting)):
            cells = []
            for ability in abilities:
                change = _over_seeds(by_seed, ability, measure)
                cells.append(with_interval(change.value, change.low, change.high, best(ability), signed=True))
                about: dict[str, Cell] = {"group": str(group), "measure": name, "ability": ability}
                about |= {"mean": change.value, "low": change.low, "high": change.high}
                numbers.append(about | {"num_seeds": len(by_seed)})
            rows.append([str(group), name, *cells])
    notes = [
        "Backward transfer: after the last stage minus after the stage that last trained the ability in full "
        "(arXiv 1706.08840). Forgetting: the best of the earlier stages minus the last (arXiv 1801.10112).",
        "95 % intervals: Student's t over seeds, where there are three or more.",
    ]
    return Table("forgetting-table", "Forgetting", ["", "", *abilities], rows, notes, numbers)


def _loss_words(evidence: Evidence, matrices: dict[Group, dict[int, ScoreMatrix]]) -> list[str]:
    """Return a sentence for each ability that was forgotten, or could have been."""
    found = []
    for ability in evidence.abilities:
        best = next(iter(next(iter(matrices.values())).values())).best_of(ability)
        lost = {str(group): _over_seeds(m, ability, forgetting).value for group, m in matrices.items()}
        words = [f"{group} {number(-v, best, signed=True)}" for group, v in lost.items() if not math.isnan(v)]
        if words:
            found.append(f"{ability}, after the last stage against the best before it: {', '.join(words)}.")
    return found


@dataclass(frozen=True)
class _Specialist:
    """Final score of a run that was trained on all data of one ability alone."""

    seed: int
    factors: dict[str, Value]
    value: float

    def is_peer_of(self, group: Group) -> bool:
        """Return whether the factors that both have are equal, such as the size."""
        mine = dict(group.factors)
        return all(mine.get(name, value) == value for name, value in self.factors.items())


def _specialist_scores(evidence: Evidence, single: Sequence[str]) -> dict[str, list[_Specialist]]:
    found: dict[str, list[_Specialist]] = {}
    tasks = {panel.ability: panel.task for panel in reversed(evidence.panels)}
    alone = {ability: evidence.specialists(ability, single) for ability in evidence.abilities}
    for r in evidence.final:
        mine = [s for s in alone.get(r.ability, []) if s.config == r.config and set(s.fixed) <= set(r.factors.items())]
        if mine and tasks.get(r.ability) == r.task and _is_whole(r.factors.get("fraction", 1)):
            others = {name: value for name, value in r.factors.items() if (name, value) not in mine[0].fixed}
            others.pop("fraction", None)
            found.setdefault(r.ability, []).append(_Specialist(r.seed, others, float(r.value or 0)))
    return found


def _is_whole(fraction: Value) -> bool:
    return is_number(fraction) and number_of(fraction, "fraction") == 1


def _retention_table(
    evidence: Evidence,
    matrices: dict[Group, dict[int, ScoreMatrix]],
    specialists: dict[str, list[_Specialist]],
    section: Section,
    single: Sequence[str],
) -> Table:
    rows, numbers = [], []
    for group, by_seed in matrices.items():
        if any(group.config == s.config for ability in specialists for s in evidence.specialists(ability, single)):
            continue
        cells = []
        for ability, alone in specialists.items():
            peers = [one for one in alone if one.is_peer_of(group)]
            value_of = {one.seed: one.value for one in peers if sum(one.seed == other.seed for other in peers) == 1}
            kept = [
                retention(m, {ability: value_of[seed]}).get(ability) for seed, m in by_seed.items() if seed in value_of
            ]
            values = [v for v in kept if v is not None and not math.isnan(v)]
            mean = student(values) if values else Estimate(math.nan)
            ends = "" if math.isnan(mean.low) else f" ({mean.low:.0%} to {mean.high:.0%})"
            cells.append("-" if math.isnan(mean.value) else f"{mean.value:.0%}{ends}")
            about: dict[str, Cell] = {"group": str(group), "ability": ability, "retention": mean.value}
            numbers.append(about | {"low": mean.low, "high": mean.high, "num_seeds": len(values)})
        rows.append([str(group), *cells])
    lacking = [ability for ability in evidence.abilities if ability not in specialists]
    names = " or ".join(reversed(single))
    section.missing += [f"config {names.replace('{ability}', ability)}, for its retention" for ability in lacking]
    notes = [
        "Final score divided by that of the model trained on all of this ability alone, of the same seed and size "
        "(and of whatever else the study varies)."
    ]
    return Table("retention", "Retention against the specialists", ["", *specialists], rows, notes, numbers)
