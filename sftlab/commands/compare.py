"""``compare``: two result files, problem by problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftlab.commands.options import CommandParser, existing_file, wants_help
from sftlab.screen import screen

if TYPE_CHECKING:
    from rich.table import Table

    from sftlab.stats.paired import Comparison

PARSER = CommandParser("compare", "Compares two result files problem by problem, with paired tests.")
PARSER.add_argument("a", type=existing_file, metavar="A.problems.jsonl")
PARSER.add_argument("b", type=existing_file, metavar="B.problems.jsonl")


def main(arguments: list[str]) -> int:
    """Print the paired comparison of two files of verdicts."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    from sftlab.report.verdicts import compare, read_verdicts

    screen().print(comparison_table(compare(read_verdicts(options.a), read_verdicts(options.b))))
    return 0


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A printable table, one row per comparison."""
    from rich.table import Table

    table = Table(title="b against a, problem by problem", title_justify="left")
    for column in ("task", "extractor", "problems", "a", "b", "b - a", "95 % interval", "p", "", "method"):
        table.add_column(column, justify="left" if column in ("task", "extractor", "", "method") else "right")
    for c in comparisons:
        cells = ["-"] * 6
        if not math.isnan(c.p_value):
            count = f"{c.num_problems:,}" + (f" ({c.num_missing:,} missing)" if c.num_missing else "")
            interval, p = f"{c.low:+.4f} to {c.high:+.4f}", f"{c.p_value:.4f}" if c.p_value >= 1e-4 else "< 0.0001"
            cells = [count, f"{c.mean_a:.4f}", f"{c.mean_b:.4f}", f"{c.difference:+.4f}", interval, p]
        table.add_row(c.task, c.extractor, *cells, c.words, c.method)
    return table
