"""``leaks``: what the training conversations of a config share with evaluation problems, and a drop list of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftlab.analysis.leaks import LeakReport, ProbeIndex

HELP = """usage: python -m sftlab leaks --config FILE --against gsm8k=FILE,humaneval,mt_bench=FILE [options]

  --against A=FILE,B     evaluation sets: questions and reference answers; humaneval and lab_... need no file
  --n 8                  words of an n-gram (8 in PaLM's check, 8 to 13 in GPT-3's)
  --to FOLDER            leaks.jsonl: conversation, problem, share of its n-grams found, the longest run of shared words
  --drop [SHARE]         also drop.jsonl: conversations that hold a problem's text whole, or at least this part of its
                         n-grams (0.7 without a value, as in PaLM's check; 0 for any n-gram)
  any option of fit      other data, other abilities

Words are runs of letters and digits, upper and lower case alike. n-grams do not cross turns.
Then train without them: --data.abilities.math.drop FOLDER/drop.jsonl, and the same for the others.
"""
_NAMES = ("against", "n", "to", "drop")
_TELL_EVERY = 5000  # conversations


def main(arguments: list[str]) -> int:
    """Check and report."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    from sftlab.analysis.leaks import DEFAULT_N, MUCH, LeakReport, ProbeIndex, leaks_to_drop
    from sftlab.analysis.probes import read_probes
    from sftlab.cli import parse_objects
    from sftlab.commands.options import output_folder, take_options
    from sftlab.data.droplist import write_drops

    options, rest = take_options(arguments, _NAMES)
    min_share = _number(options, "drop", MUCH, 0, 1) if "drop" in options else None
    n = int(_number(options, "n", DEFAULT_N, 2, 1000))
    if min_share is not None and "to" not in options:
        raise ValueError("--to: name the folder that drop.jsonl goes to")
    folder = output_folder(options) if "to" in options else None
    index = ProbeIndex(read_probes(options.get("against", "")), n)
    report = LeakReport(index)
    _check(parse_objects(rest).data.abilities, index, report, folder)
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
    from sftlab.analysis.leaks import find_leaks, leak_line

    with ExitStack() as stack:
        partial = folder / ".leaks.jsonl.partial" if folder else None
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
    if partial:
        partial.rename(partial.with_name("leaks.jsonl"))


def _print(report: LeakReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sftlab.analysis.leaks import MUCH

    index, console = report.index, Console()
    console = console if console.is_terminal else Console(width=130)
    table = Table(title=f"Overlap by {index.n} words in a row", title_justify="left", box=box.SIMPLE_HEAD)
    titles = ("ability", "conversations", "against", "same text", f"{MUCH:.0%} shared", "any shared")
    for number, title in enumerate((*titles, f"problems {MUCH:.0%}", "problems any", "of")):
        table.add_column(title, justify="left" if number in (0, 2) else "right")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    console.print(
        f"same text: a turn equals a question or answer; {MUCH:.0%}, any: conversations with so many of its "
        f"{index.n}-grams, with any; problems: those that they touch.",
        style="dim",
    )
    if index.num_short:
        console.print(
            f"{index.num_short:,} of {len(index.probes):,} texts of problems have fewer than {index.n} words and are "
            f"compared as a whole only; {index.num_unchecked:,} are too short to be compared at all.",
            highlight=False,
        )
    for task, leaks in report.worst.items():
        console.print(f"\nThe most of {task}:", style="bold")
        for leak in leaks:
            kind = "same" if leak.same else f"{leak.share:.0%}"
            text = f"  {kind:>5}  {leak.ability} {leak.uid[:10]}  {leak.problem} {leak.part}: {leak.words[:150]}"
            console.print(text, highlight=False, markup=False)
