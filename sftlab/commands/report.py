"""``report``: the page, figures and tables of a study."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sftlab.commands.options import CommandParser, wants_help
from sftlab.screen import show

PARSER = CommandParser("report", "Writes the page, figures and tables of a study; several are set side by side.")
PARSER.add_argument(
    "folder",
    nargs="+",
    help="lightning_logs/<study>; the report goes into its folder report/, of several into the first one's",
)
PARSER.add_argument(
    "--weights",
    default="",
    help="what each ability counts in the best setting: math=1,code=1,general=2 (default: equal)",
)

_MOST_LINES = 12  # of a section; a search has the most


def weights_of(text: str) -> dict[str, float]:
    """Parse ``math=1,code=1,general=2`` as a mapping.

    Raises:
        ValueError: It has another form.
    """
    weights = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise ValueError(f"--weights: {part!r} is not an ability=number; write math=1,code=1,general=2")
    return weights


def main(arguments: list[str]) -> int:
    """Parse, write the report and print its path."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    weights = weights_of(options.weights) if options.weights else {}
    folders = [Path(folder) for folder in options.folder]
    if len(folders) > 1:
        from sftlab.report.beside import write_beside

        page = write_beside(folders, weights)
    else:
        from sftlab.report.write import write_report

        page = write_report(folders[0], weights)
    print_summary(page)
    show(f"Report: {page}")
    return 0


def print_summary(page: Path) -> None:
    """Print the start of the page, at most a few lines of each section."""
    from sftlab.report.write import SUMMARY

    number = 0
    for line in (page.parent / SUMMARY).read_text(encoding="utf-8").splitlines():
        number = number + 1 if line.startswith("  ") else 0
        if number <= _MOST_LINES:
            indent = "  " * (number > 0)
            show(textwrap.fill(line, 80, initial_indent="", subsequent_indent=indent, break_on_hyphens=False))
        elif number == _MOST_LINES + 1:
            show(f"  ... all of it in {SUMMARY} beside the page")
    show("")
