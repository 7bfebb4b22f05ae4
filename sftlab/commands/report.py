"""``report``: the page, figures and tables of a study."""

from __future__ import annotations

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


def weights_of(text: str) -> dict[str, float]:
    """``math=1,code=1,general=2`` as a mapping.

    Raises:
        ValueError: It is not written so.
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
    """Parse, write the report and say where it is."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    weights = weights_of(options.weights) if options.weights else {}
    from pathlib import Path

    folders = [Path(folder) for folder in options.folder]
    if len(folders) > 1:
        from sftlab.report.beside import write_beside

        show(f"Report: {write_beside(folders, weights)}")
        return 0
    from sftlab.report.write import write_report

    show(f"Report: {write_report(folders[0], weights)}")
    return 0
