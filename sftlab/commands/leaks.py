"""``leaks``: find what training conversations share with evaluation problems, and write a drop list of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.analysis.leaks.find import DEFAULT_N, MUCH
from sftlab.commands.options import CommandParser, number, output_folder, wants_help, whole_number
from sftlab.screen import screen, show, tell_progress

if TYPE_CHECKING:
    from sftlab.analysis.leaks.find import LeakReport, ProblemIndex

PARSER = CommandParser(
    "leaks",
    "Finds evaluation problems in the training conversations of a config.",
    takes_config=True,
    notes="""
Words are runs of letters and digits, upper and lower case alike. n-grams do not cross turns.
Then train without them: --data.abilities.math.drop FOLDER/drop.jsonl, and the same for the others.
The report of a study whose runs use that list shows the leaks; also if FOLDER lies in lightning_logs/<study>/exhibits.
""",
)
PARSER.add_argument(
    "--against",
    default="",
    metavar="A=FILE,B",
    help="evaluation sets: questions and reference answers; gsm8k=FILE,humaneval,mt_bench=FILE; humaneval and lab_... "
    "need no file",
)
PARSER.add_argument(
    "--n",
    type=whole_number(2, 1000),
    default=DEFAULT_N,
    metavar="8",
    help="words of an n-gram (PaLM's 8, GPT-3's 8 to 13)",
)
PARSER.add_argument(
    "--to",
    default="",
    metavar="FOLDER",
    help="leaks.jsonl: conversation, problem, share of its n-grams found, the longest run of shared words",
)
PARSER.add_argument(
    "--drop",
    type=number(0, 1),
    nargs="?",
    const=MUCH,
    metavar="SHARE",
    help="also drop.jsonl: conversations that hold a problem's text whole, or at least this part of its n-grams (0.7 "
    "without a value, as in PaLM's check; 0 for any n-gram)",
)
_TELL_EVERY = 5000  # conversations


def main(arguments: list[str]) -> int:
    """Check and report."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    from sftlab.analysis.leaks.find import LeakReport, ProblemIndex, leaks_to_drop
    from sftlab.analysis.leaks.problems import read_problem_texts
    from sftlab.cli import parse_objects
    from sftlab.data.droplist import write_drops

    if options.drop is not None and not options.to:
        raise ValueError("--to: name the folder that drop.jsonl goes to")
    index = ProblemIndex(read_problem_texts(options.against), options.n)
    report, abilities = LeakReport(index), parse_objects(config).data.abilities
    folder = output_folder(options.to) if options.to else None
    _check(abilities, index, report, folder)
    if folder and options.drop is not None:
        drops = leaks_to_drop(folder / "leaks.jsonl", options.drop)
        write_drops(folder / "drop.jsonl", drops)
    _print(report)
    if folder:
        written = f", drop.jsonl ({len(drops):,} conversations)" if options.drop is not None else ""
        show(f"Written to {folder}: leaks.jsonl{written}")
    return 0


def _check(abilities: dict[str, Any], index: ProblemIndex, report: LeakReport, folder: Path | None) -> None:
    """Stream every ability past the index; leaks.jsonl appears when all are done."""
    from sftlab.analysis.leaks.find import find_leaks, leak_line
    from sftlab.files import whole_file

    with ExitStack() as stack:
        partial = stack.enter_context(whole_file(folder / "leaks.jsonl")) if folder else None
        file = stack.enter_context(partial.open("w", encoding="utf-8")) if partial else None
        for name, ability in abilities.items():
            for leaks in find_leaks(ability.conversations(), name, index):
                report.add(name, leaks)
                if file:
                    file.writelines(map(leak_line, leaks))
                done = report.conversations[name]
                if done % _TELL_EVERY == 0:
                    tell_progress(f"{name}, conversations", done)
    if max(report.conversations.values(), default=0) >= _TELL_EVERY:
        print(file=sys.stderr)
    if folder:
        report.exhibit().write(folder, "leaks")


def _print(report: LeakReport) -> None:
    from rich import box
    from rich.table import Table

    from sftlab.analysis.leaks.find import TITLES

    console = screen()
    title = f"Overlap by {report.index.n} words in a row"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for position, column in enumerate(TITLES):
        table.add_column(column, justify="left" if position in (0, 2) else "right")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    for note in report.notes():
        console.print(note, style="dim")
    last = ""
    for task, share, ability, uid, problem, part, words in report.worst_rows():
        if task != last:
            console.print(f"\nThe most of {task}:", style="bold")
        text, last = f"  {share:>5}  {ability} {uid}  {problem} {part}: {words}", task
        console.print(text)
