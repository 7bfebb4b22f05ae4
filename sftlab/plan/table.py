"""The plan as text: a table of stages and abilities, and what was lost on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sftlab.plan.ledger import LedgerRow, ledger, loss_shares
from sftlab.plan.plan import Plan, StagePlan

UNIT_WORDS = {"examples": "examples", "tokens": "tokens", "supervised_tokens": "supervised tokens"}


def plan_table(plan: Plan, normalise: str = "token") -> Table:
    """Return a table of stages: abilities, fractions, examples, tokens, shares requested and achieved, steps, fill.

    If a stage has loss weights, the table also has each ability's share of the loss.
    """
    title = f"Plan: {plan.num_steps:,} optimizer steps of {plan.batch}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("ability")
    names = ("data", "fraction", "used", "examples", "tokens", "supervised", "asked", "got", "repeats")
    is_weighted = any(stage.stage.weighs_abilities for stage in plan.stages)
    for name in (*names, *(["of the loss"] if is_weighted else []), "steps", "epochs", "fill"):
        table.add_column(name, justify="right")
    rows = ledger(plan)
    for stage in plan.stages:
        mine = [row for row in rows if row.stage == stage.stage.name]
        losses = loss_shares(plan, stage, normalise) if is_weighted else {}
        for position, row in enumerate(mine):
            table.add_row(
                stage.stage.name if position == 0 else "",
                *_ability_cells(plan, stage, row),
                *([f"{losses[row.ability]:.2%}"] if is_weighted else []),
                *(_stage_cells(plan, stage) if position == 0 else ("", "", "")),
                end_section=position == len(mine) - 1,
            )
    return table


class PlanTables:
    """The stages in one table if the terminal is wide enough, else in one narrow table per stage.

    Args:
        plan: The plan.
        normalise: The loss's normalisation.
    """

    def __init__(self, plan: Plan, normalise: str = "token") -> None:
        self.plan, self.normalise = plan, normalise

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what fits."""
        wide = plan_table(self.plan, self.normalise)
        if console.measure(wide, options=options.update(max_width=10_000)).maximum <= options.max_width:
            yield wide
            return
        yield Text(f"Plan: {self.plan.num_steps:,} optimizer steps of {self.plan.batch}", style="italic")
        tables = [self._narrow(stage, is_short=False) for stage in self.plan.stages]
        if any(
            console.measure(one, options=options.update(max_width=10_000)).maximum > options.max_width for one in tables
        ):
            tables = [self._narrow(stage, is_short=True) for stage in self.plan.stages]
        for stage, table in zip(self.plan.stages, tables, strict=True):
            yield self._heading(stage)
            yield table
        yield Text("")

    def _heading(self, stage: StagePlan) -> Text:
        steps, epochs, fill = _stage_cells(self.plan, stage)
        passes = "epoch" if epochs == "1" else "epochs"
        return Text(f"\nStage {stage.stage.name}: {steps} steps, {epochs} {passes}, packing fill {fill}", style="bold")

    def _narrow(self, stage: StagePlan, is_short: bool) -> Table:
        """Return the stage's abilities; if ``is_short``, large counts and shares are rounded."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("ability", overflow="fold")
        is_weighted = any(other.stage.weighs_abilities for other in self.plan.stages)
        losses = loss_shares(self.plan, stage, self.normalise) if is_weighted else {}
        for name in (*_NARROW_NAMES, *(["of\nloss"] if is_weighted else [])):
            table.add_column(name, justify="right", no_wrap=True)
        for row in ledger(self.plan):
            if row.stage == stage.stage.name:
                loss = [f"{losses[row.ability]:.{1 if is_short else 2}%}"] if is_weighted else []
                table.add_row(*_ability_cells(self.plan, stage, row, is_short), *loss)
        return table


_NARROW_NAMES = (
    "data", "frac-\ntion", "used", "exam-\nples", "tokens", "super-\nvised", "asked", "got", "re-\npeats")  # fmt: skip


def _short(count: int) -> str:
    """Format a count in at most five characters: 11.9M."""
    if count < 10_000:
        return f"{count:,}"
    size, unit = next((s, u) for s, u in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if count >= s)
    return f"{count / size:.{0 if count >= 100 * size else 1}f}{unit}"


def _ability_cells(plan: Plan, stage: StagePlan, row: LedgerRow, is_short: bool = False) -> tuple[str, ...]:
    fraction, digits = stage.stage.fractions[row.ability], 1 if is_short else 2
    counts = [_short(count) if is_short else f"{count:,}" for count in (row.tokens, row.supervised_tokens)]
    tokens = ("?", "?") if plan.declared else counts
    return (
        row.ability,
        f"{plan.populations[row.ability]:,}",
        as_fraction(fraction),
        f"{stage.selected[row.ability]:,}",
        f"{row.examples:,}",
        *tokens,
        f"{stage.requested[row.ability]:.{digits}%}",
        f"{row.share(stage.counted_in):.{digits}%}",
        f"{row.examples / row.distinct_examples:.2f}" if row.distinct_examples else "-",
    )


def _stage_cells(plan: Plan, stage: StagePlan) -> tuple[str, str, str]:
    end_step = min(stage.end_step, plan.num_compiled_steps)
    fill = "?" if plan.declared else f"{plan.fill(stage.first_step, end_step):.1%}"
    return f"{stage.num_steps:,}", f"{stage.num_epochs:.3g}", fill


def as_fraction(value: float) -> str:
    """Format a value as 1/256 rather than 0.00390625 if it is one over a whole number."""
    if value in (0.0, 1.0):
        return str(int(value))
    inverse = 1 / value
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-9 else f"{value:.4g}"


def plan_notes(plan: Plan) -> list[str]:
    """Return what a user should know about a plan before training: units, tiny stages, empty abilities."""
    units = {UNIT_WORDS[stage.counted_in] for stage in plan.stages}
    notes = [
        "data: examples there are; used: those that the fractions select; examples: those trained, repeats counted.",
        f"asked, got: share of the stage in {' or '.join(sorted(units))}; repeats: examples trained / distinct ones.",
    ]
    for stage in plan.stages:
        if stage.stage.curriculum != "shuffled":
            notes.append(f"Stage {stage.stage.name}: each pass is in the order {stage.stage.curriculum}.")
        if stage.stage.counted_in != "examples":
            notes.append(f"Stage {stage.stage.name}: fractions count {UNIT_WORDS[stage.stage.counted_in]}.")
        if stage.stage.weighs_abilities:
            weights = ", ".join(f"{name} {stage.stage.loss_weight(name):g}" for name in stage.stage.fractions)
            notes.append(
                f"Stage {stage.stage.name}: loss weights {weights}; logged losses of abilities are unweighted."
            )
        notes += _open_notes(plan, stage)
    trained = {name for stage in plan.stages for name, fraction in stage.stage.fractions.items() if fraction}
    if idle := [name for name in plan.populations if name not in trained]:
        notes.append(f"No stage trains {', '.join(idle)}: its data is only validated on, if any is held out.")
    if plan.declared:
        notes.append("Lengths are not known (the config declares counts): tokens and fill are unknown.")
    for stage in plan.stages:
        for ability, count in stage.selected.items():
            if count == 0 and stage.stage.fractions[ability] > 0:
                notes.append(f"Stage {stage.stage.name}: the fraction selects no example of {ability}.")
        if stage.num_steps < 10:
            notes.append(f"Stage {stage.stage.name} has only {stage.num_steps} optimizer step(s).")
    return notes


def _open_notes(plan: Plan, stage: StagePlan) -> list[str]:
    """Describe what is fixed in an adaptive stage, and the bounds of the rest."""
    compiled = min(stage.end_step, plan.num_compiled_steps) - stage.first_step
    left = stage.num_steps - compiled
    if stage.stage.adaptive is None or left <= 0:
        return []
    name, policy = stage.stage.name, type(stage.stage.adaptive).__name__
    text = (
        f"Stage {name}: {compiled:,} of its {stage.num_steps:,} steps are fixed and counted above; {policy} decides "
        f"the other {left:,}, {stage.stage.decide_every_n_steps:,} at a time."
    )
    if stage.stage.adaptive.may_return:
        text += " It may return to the end of an earlier segment, which gives up the steps after it, or end the stage."
    if plan.batch.examples is None or plan.declared:
        return [text]
    totals = {}
    for number, ability in enumerate(plan.abilities):
        lengths = plan.lengths_N[plan.ability_N == number][: stage.selected.get(ability, 0)]
        if len(lengths):
            laps, rest = divmod(left * plan.batch.examples, len(lengths))
            totals[ability] = laps * int(lengths.sum()) + int(lengths[:rest].sum())
    least, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    bounds = f" They have between about {totals[least]:,} tokens (all {least}) and {totals[most]:,} (all {most})."
    return [text + bounds]


def audit_table(
    audits: Mapping[str, Mapping[str, int]], places: Mapping[str, Mapping[str, str]] | None = None
) -> Table | None:
    """Return what was repaired, truncated, split or dropped, by ability and cause; None if nothing was.

    Args:
        audits: Records by ability and cause.
        places: The first of these records, in words.
    """
    if not any(audits.values()):
        return None
    table = Table(title="Changed or left out on the way in", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("ability")
    table.add_column("cause", no_wrap=True)
    table.add_column("records", justify="right")
    table.add_column("the first", overflow="fold")
    for ability, counts in audits.items():
        for cause, count in sorted(counts.items()):
            first = (places or {}).get(ability, {}).get(cause, "")
            table.add_row(Text(ability), Text(cause), f"{count:,}", Text(first))
    return table


def plan_screen(
    plan: Plan,
    audits: Mapping[str, Mapping[str, int]],
    places: Mapping[str, Mapping[str, str]] | None = None,
    data_notes: Sequence[str] = (),
    normalise: str = "token",
) -> RenderableType:
    """Return the table of stages, its notes and those of the data, and the audit."""
    notes = [*plan_notes(plan), *data_notes]
    parts: list[RenderableType] = [PlanTables(plan, normalise), *(Text(note, style="dim") for note in notes)]
    lost = audit_table(audits, places)
    return Group(*parts, *([lost] if lost is not None else []))
