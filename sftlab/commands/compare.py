"""``compare``: two result files, problem by problem."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Print the paired comparison of two files of verdicts."""
    if len(arguments) != 2 or "-h" in arguments or "--help" in arguments:
        print("usage: python -m sftlab compare A.problems.jsonl B.problems.jsonl")
        return 0 if {"-h", "--help"} & set(arguments) else 2
    from pathlib import Path

    from rich.console import Console

    from sftlab.stats.paired import compare, comparison_table

    Console().print(comparison_table(compare(Path(arguments[0]), Path(arguments[1]))))
    return 0
