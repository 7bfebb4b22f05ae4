"""``compare``: two result files, problem by problem."""

from __future__ import annotations

from sftlab.commands.options import CommandParser, existing_file, wants_help
from sftlab.screen import screen

PARSER = CommandParser("compare", "Compares two result files problem by problem, with paired tests.")
PARSER.add_argument("a", type=existing_file, metavar="A.problems.jsonl")
PARSER.add_argument("b", type=existing_file, metavar="B.problems.jsonl")


def main(arguments: list[str]) -> int:
    """Print the paired comparison of two files of verdicts."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    from sftlab.stats.paired import compare, comparison_table

    screen().print(comparison_table(compare(options.a, options.b)))
    return 0
