"""``compare``: compare two runs, stages or result files, problem by problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftlab.commands.options import CommandParser, wants_help
from sftlab.screen import screen, show

if TYPE_CHECKING:
    from rich.table import Table

    from sftlab.results.score import ScoreRow
    from sftlab.stats.paired import Comparison

PARSER = CommandParser(
    "compare",
    "Compares two runs, stages or result files problem by problem, with paired tests.",
    notes="""
sftlab compare dmt multi_task               what both have answered after their last stages
sftlab compare dmt/specialised dmt/general  two stages of a run
Answers of the runs themselves and of evaluate are found; a name is looked for in lightning_logs/.
""",
)
PARSER.add_argument("a", metavar="A", help="a run, run/stage, or <task>.problems.jsonl")
PARSER.add_argument("b", metavar="B", help="the same of the other")


def main(arguments: list[str]) -> int:
    """Print the paired comparison."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    from sftlab.report.verdicts import compare, read_verdicts, that_counts

    found: list[Comparison] = []
    counted: dict[str, str] = {}
    best: dict[str, float | None] = {}
    for a, b in _pairs(options.a, options.b):
        mine = compare(read_verdicts(a), read_verdicts(b))
        for task in dict.fromkeys(c.task for c in mine):
            row = _score_row(task, a)
            extractors = [c.extractor for c in mine if c.task == task]
            counted[task] = that_counts(extractors, row.metric if row else "")
            best[task] = row.best if row else None
        found += mine
    console = screen()
    console.print(comparison_table(found, counted, best))
    show(f"a: {options.a}", f"b: {options.b}")
    for note in comparison_notes(found, counted):
        console.print(note)
    return 0


def _score_row(task: str, verdicts: Path) -> ScoreRow | None:
    """Return the score of a task in the ``scores.jsonl`` of its evaluation or run; None if there is none."""
    from sftlab.evaluate.run import read_scores

    places = [verdicts.parent, *verdicts.parents[2:3]]
    rows = [row for place in places for row in read_scores(place / "scores.jsonl") if row.task == task and row.headline]
    return rows[0] if rows else None


def _pairs(a: str, b: str) -> list[tuple[Path, Path]]:
    """Return the files to compare.

    Raises:
        ValueError: One of the two is not a result file, run or stage.
    """
    are_files = [Path(name).is_file() or name.endswith(".jsonl") for name in (a, b)]
    if all(are_files):
        for name in (a, b):
            if not Path(name).is_file():
                raise ValueError(f"compare: there is no file {name}")
        return [(Path(a), Path(b))]
    if any(are_files):
        raise ValueError("compare: name two result files, or two runs or stages")
    files = [{path.name: path for path in sorted(Path(name).glob("*.problems.jsonl"))} for name in (a, b)]
    if all(files):  # two folders of evaluate
        if common := [name for name in files[0] if name in files[1]]:
            return [(files[0][name], files[1][name]) for name in common]
        raise ValueError(f"compare: no task is in both; {a} has {', '.join(files[0])}, {b} has {', '.join(files[1])}")
    from sftlab.run.results import find_stage, pairs_of_verdicts

    return pairs_of_verdicts(find_stage(a), find_stage(b))


def comparison_notes(found: Sequence[Comparison], counted: Mapping[str, str]) -> list[str]:
    """Say which rule counts, how intervals were computed, and what the table has no room for."""
    several = [task for task in counted if sum(c.task == task for c in found) > 1]
    notes = [
        f"The score of {task} is by {counted[task]}; the lines below it read the same answers by other rules."
        for task in several
    ]
    notes += [f"{c.task}, {c.extractor}: {c.num_missing:,} problems have no verdict" for c in found if c.num_missing]
    return [*notes, *(f"{c.task}, {c.extractor}: {c.method}" for c in _ordered(found, counted))]


def _ordered(found: Sequence[Comparison], counted: Mapping[str, str]) -> list[Comparison]:
    """Order the comparisons task by task, the rule that counts first."""
    tasks = list(dict.fromkeys(c.task for c in found))
    return sorted(found, key=lambda c: (tasks.index(c.task), c.extractor != counted.get(c.task)))


def comparison_table(
    found: Sequence[Comparison], counted: Mapping[str, str], best: Mapping[str, float | None]
) -> Table:
    """Return a printable table, one row per comparison, that fits 80 columns.

    Args:
        found: The comparisons.
        counted: For each task the extractor of its score; the others come below it.
        best: For each task the highest possible score, 1 for percent; None if it is not known.
    """
    from rich import box
    from rich.table import Table

    from sftlab.report.text import interval_text, number

    title = "b against a over n problems; 95 % interval of b - a"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("task, extractor", overflow="fold", min_width=16)
    for column in ("n", "a", "b", "b - a", "interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for c in _ordered(found, counted):
        cells = ["-"] * 6
        if not math.isnan(c.p_value):
            top = best.get(c.task)
            p = f"{c.p_value:.3f}" if c.p_value >= 1e-3 else "<.001"
            means = [number(mean, top) for mean in (c.mean_a, c.mean_b)]
            change = [number(c.difference, top, signed=True), interval_text(c.low, c.high, top, signed=True)]
            cells = [f"{c.num_problems:,}", *means, *change, p]
        is_counted = c.extractor == counted.get(c.task)
        name = f"{c.task}, {c.extractor}" if is_counted else f"  {c.extractor}"
        table.add_row(name, *cells, c.words, style=None if is_counted else "dim")
    return table
