"""``leaks``: what the training conversations of a config share with evaluation problems, and a drop list of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftlab.analysis.leaks.find import LeakReport, ProbeIndex

HELP = """usage: python -m sftlab leaks --config FILE --against gsm8k=FILE,humaneval,mt_bench=FILE [options]

  --against A=FILE,B     evaluation sets: questions and reference answers; humaneval and lab_... need no file
  --n 8                  words of an n-gram (8 in PaLM's check, 8 to 13 in GPT-3's)
  --to FOLDER            leaks.jsonl: conversation, problem, share of its n-grams found, the longest run of shared words
  --drop [SHARE]         also drop.jsonl: conversations that hold a problem's text whole, or at least this part of its
                         n-grams (0.7 without a value, as in PaLM's check; 0 for any n-gram)
  any option of fit      other data, other abilities

Words are runs of letters and digits, upper and lower case alike. n-grams do not cross turns.
Then train without them: --data.abilities.math.drop FOLDER/drop.jsonl, and the same for the others.
The report of a study whose runs use that list shows the leaks; also if FOLDER lies in lightning_logs/<study>/inside.
"""
_NAMES = ("against", "n", "to", "drop")
_TELL_EVERY = 5000  # conversations


def main(arguments: list[str]) -> int:
    """Check and report."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    from sftlab.analysis.leaks.find import DEFAULT_N, MUCH, LeakReport, ProbeIndex, leaks_to_drop
    from sftlab.analysis.leaks.probes import read_probes
    from sftlab.cli import parse_objects
    from sftlab.commands.options import output_folder, take_options
    from sftlab.data.droplist import write_drops

    options, rest = take_options(arguments, _NAMES)
    min_share = _number(options, "drop", MUCH, 0, 1) if "drop" in options else None
    n = int(_number(options, "n", DEFAULT_N, 2, 1000))
    if min_share is not None and "to" not in options:
        raise ValueError("--to: name the folder that drop.jsonl goes to")
    index = ProbeIndex(read_probes(options.get("against", "")), n)
    report, abilities = LeakReport(index), parse_objects(rest).data.abilities
    folder = output_folder(options) if "to" in options else None
    _check(abilities, index, report, folder)
    if folder and min_share is not None:
        drops = leaks_to_drop(folder / "leaks.jsonl", min_share)
        write_drops(folder / "drop.jsonl", drops)
    _print(report)
    if folder:
        written = f", drop.jsonl ({len(drops):,} conversations)" if min_share is not None else ""
        print(f"Written to {folder}: leaks.jsonl{written}")
    return 0


def _number(options: dict[str, str], name: str, default: float, low: float, high: float) -> float:
    try:
        value = float(options.get(name) or default)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"--{name}: {options[name]!r} is not a number from {low} to {high}")
    return value


def _check(abilities: dict[str, Any], index: ProbeIndex, report: LeakReport, folder: Path | None) -> None:
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
                    print(f"\r{name}: {done:,} conversations", end="", file=sys.stderr, flush=True)
    if max(report.conversations.values(), default=0) >= _TELL_EVERY:
        print(file=sys.stderr)
    if folder:
        report.exhibit().write(folder, "leaks")


def _print(report: LeakReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sftlab.analysis.leaks.find import TITLES

    console = Console()
    console = console if console.is_terminal else Console(width=130)
    title = f"Overlap by {report.index.n} words in a row"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(TITLES):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    for note in report.notes():
        console.print(note, highlight=False, style="dim")
    last = ""
    for task, share, ability, uid, problem, part, words in report.worst_rows():
        if task != last:
            console.print(f"\nThe most of {task}:", style="bold")
        text, last = f"  {share:>5}  {ability} {uid}  {problem} {part}: {words}", task
        console.print(text, highlight=False, markup=False)
