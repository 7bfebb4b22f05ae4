"""Sections that every report has: what was forgotten, what it cost, what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.report.evidence import Evidence, Group, number_of
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import HeatBlock, heat_figure
from sftlab.report.rows import HELD_OUT, Result, Value
from sftlab.report.section import Drawing, Section
from sftlab.report.text import duration, number, with_interval
from sftlab.stats.forgetting import PerAbility, ScoreMatrix, backward_transfer, forgetting, retention
from sftlab.stats.interval import Estimate, student

MAX_SINGLE_STAGE = 24  # groups of one stage shown in the heat map: they forget nothing, and a grid has dozens


def keeping(evidence: Evidence) -> Section:
    """The matrix R[stage, ability] of each group, with backward transfer, forgetting and retention."""
    section = Section("forgetting", "What each stage taught and made forget")
    rows = [r for r in evidence.results if r.headline and not r.inside and r.task != HELD_OUT and r.value is not None]
    matrices = {group: _matrices(evidence, group, rows) for group in evidence.groups}
    matrices = {group: found for group, found in matrices.items() if found}
    staged = [g for g, found in matrices.items() if any(len(m.stages) > 1 for m in found.values())]
    single = [g for g in matrices if g not in staged]
    shown = [g for g in matrices if g in staged or len(single) <= MAX_SINGLE_STAGE]
    if len(single) > MAX_SINGLE_STAGE:
        section.lead = f"{len(single)} groups of one stage are not drawn: nothing can be forgotten in them."
    if shown:
        section.parts.append(_heat(evidence, {g: matrices[g] for g in shown}))
    if staged:
        section.parts.append(_change_table(evidence, {g: matrices[g] for g in staged}))
        section.findings += _loss_words(evidence, {g: matrices[g] for g in staged})
    specialists = _specialist_scores(evidence)
    if specialists:
        section.parts.append(_retention_table(evidence, matrices, specialists, section))
    return section


def _matrices(evidence: Evidence, group: Group, rows: Sequence[Result]) -> dict[int, ScoreMatrix]:
    """R by seed; every ability by its first headline task."""
    mine = [r for r in rows if evidence.group_of(r.config, r.factors) == group]
    tasks = {panel.ability: panel.task for panel in reversed(evidence.panels)}
    mine = [r for r in mine if tasks.get(r.ability) == r.task]
    found = {}
    for seed in sorted({r.seed for r in mine}):
        own = sorted((r for r in mine if r.seed == seed), key=lambda r: r.stage_index)
        full = {r.stage: [x.ability for x in own if x.stage == r.stage and x.full] for r in own}
        best = {r.ability: r.best or 1.0 for r in own}
        table = [{"stage": r.stage, "ability": r.ability, "value": r.value} for r in own]
        found[seed] = ScoreMatrix.from_rows(table, full, best)
    return found


def _heat(evidence: Evidence, matrices: dict[Group, dict[int, ScoreMatrix]]) -> Drawing:
    abilities = list(dict.fromkeys(panel.ability for panel in evidence.panels))
    blocks, numbers = [], []
    for group, by_seed in matrices.items():
        first = next(iter(by_seed.values()))
        share_SA = np.full((len(first.stages), len(abilities)), math.nan)
        text_SA = [["" for _ in abilities] for _ in first.stages]
        for i, stage in enumerate(first.stages):
            for j, ability in enumerate(abilities):
                value = _mean_cell(by_seed, stage, ability)
                if math.isnan(value):
                    continue
                best, star = first.best_of(ability), "*" * (ability in first.full[i])
                share_SA[i, j] = value / best
                text_SA[i][j] = (f"{100 * value:.1f}" if best == 1 else f"{value:.2f}") + star
                about: dict[str, Cell] = {"group": str(group), "stage": stage, "ability": ability, "mean": value}
                numbers.append(about | {"trained_in_full": bool(star), "num_seeds": len(by_seed)})
        blocks.append(HeatBlock(str(group), list(first.stages), share_SA, text_SA))
    caption = (
        "Score of every ability (columns) after every stage (rows), mean over seeds; rates in percent. A star: the "
        "stage trained the ability in full. Colour: share of the best possible score."
    )
    return Drawing("forgetting", "Scores after each stage", caption, heat_figure(blocks, abilities), numbers)


def _mean_cell(by_seed: dict[int, ScoreMatrix], stage: str, ability: str) -> float:
    values = [
        float(m.scores_SA[m.stages.index(stage), m.abilities.index(ability)])
        for m in by_seed.values()
        if stage in m.stages and ability in m.abilities
    ]
    return sum(values) / len(values) if values else math.nan


def _over_seeds(
    by_seed: dict[int, ScoreMatrix], ability: str, measure: Callable[[ScoreMatrix], PerAbility]
) -> Estimate:
    """Mean and interval of a measure of an ability over seeds; nan where no seed has it.

    Two seeds have no interval: they may agree by chance, to one of no width.
    """
    values = [v for m in by_seed.values() if (v := measure(m).get(ability)) is not None and not math.isnan(v)]
    if len(values) > 2:
        return student(values)
    return Estimate(sum(values) / len(values) if values else math.nan)


def _change_table(evidence: Evidence, matrices: dict[Group, dict[int, ScoreMatrix]]) -> Table:
    abilities = list(dict.fromkeys(panel.ability for panel in evidence.panels))
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
    """A sentence for each ability that something forgot, or could have."""
    found = []
    for ability in dict.fromkeys(panel.ability for panel in evidence.panels):
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
        """Whether the factors that both have are the same, such as the size."""
        mine = dict(group.factors)
        return all(mine.get(name, value) == value for name, value in self.factors.items())


def _specialist_scores(evidence: Evidence) -> dict[str, list[_Specialist]]:
    found: dict[str, list[_Specialist]] = {}
    tasks = {panel.ability: panel.task for panel in reversed(evidence.panels)}
    for r in evidence.final:
        whole = number_of(r.factors.get("fraction", 1), "fraction") == 1
        if r.config in evidence.specialists(r.ability) and tasks.get(r.ability) == r.task and whole:
            factors = {name: value for name, value in r.factors.items() if name != "fraction"}
            found.setdefault(r.ability, []).append(_Specialist(r.seed, factors, float(r.value or 0)))
    return found


def _retention_table(
    evidence: Evidence,
    matrices: dict[Group, dict[int, ScoreMatrix]],
    specialists: dict[str, list[_Specialist]],
    section: Section,
) -> Table:
    rows, numbers = [], []
    for group, by_seed in matrices.items():
        if any(group.config in evidence.specialists(ability) for ability in specialists):
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
    lacking = [p.ability for p in evidence.panels if p.ability not in specialists]
    section.missing += [f"config {ability}_only or single_{ability}, for its retention" for ability in lacking]
    notes = [
        "Final score divided by that of the model trained on all of this ability alone, of the same seed and size "
        "(and of whatever else the study varies)."
    ]
    return Table("retention", "Retention against the specialists", ["", *specialists], rows, notes, numbers)


def cost(evidence: Evidence) -> Section:
    """Tokens trained and reused, and seconds, by config."""
    section = Section("cost", "Cost")
    rows, numbers = [], []
    for config in [*dict.fromkeys(c.config for c in evidence.costs), None]:
        runs = [c for c in evidence.costs if config is None or c.config == config]
        stages = [stage for run in runs for stage in run.stages]
        reused = sum(s.tokens for s in stages if s.reused)
        trained = sum(s.tokens for s in stages) - reused
        seconds = sum(s.seconds or 0 for s in stages if not s.reused)
        saved = reused / (trained + reused) if trained + reused else 0.0
        done = sum(run.status == "done" for run in runs)
        name = config or "total"
        count = f"{done}" if done == len(runs) else f"{done} of {len(runs)}"
        rows.append([name, count, f"{trained:,}", f"{reused:,}", f"{saved:.0%}", duration(seconds)])
        about: dict[str, Cell] = {"config": name, "runs": len(runs), "done": done, "tokens_trained": trained}
        numbers.append(about | {"tokens_reused": reused, "saved_share": saved, "seconds": seconds})
    total = numbers[-1]
    if evidence.costs:
        section.findings.append(
            f"{total['done']} of {total['runs']} runs done; {rows[-1][2]} tokens trained in {rows[-1][5]}, "
            f"{rows[-1][3]} taken over from stages that other runs had trained (**{rows[-1][4]} saved**)."
        )
    notes = ["Reused: tokens of stages that another run of the study trained. Saved: reused / (trained + reused)."]
    header = ["config", "runs done", "tokens trained", "tokens reused", "saved", "training time"]
    section.parts.append(Table("cost", "What was trained", header, rows, notes, numbers))
    return section


def failures(evidence: Evidence) -> Section | None:
    """Failed runs with their last lines; None where none failed."""
    failed = [c for c in evidence.costs if c.status == "failed"]
    if not failed:
        return None
    section = Section("failed", "Failed runs", "The same study command runs them again.")
    rows = [[c.run, c.error or "no message"] for c in failed]
    section.parts.append(Table("failed", "Failed runs", ["run", "last lines"], rows))
    return section
