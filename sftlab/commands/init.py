"""``init``: inspect files and machine, write a config that fits both, and show its plan."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftlab.commands.options import CommandParser
from sftlab.files import write_text
from sftlab.screen import screen, show

if TYPE_CHECKING:
    from sftlab.data.survey import Survey

PARSER = CommandParser(
    "init",
    "Looks at data files and at this machine, writes a commented config with readers, template, batch and schedule\n"
    "that fit, and shows its plan. Nothing is trained, nothing is overwritten.",
)
PARSER.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="json, jsonl, csv or parquet files (.gz, .zst), folders of them, or hub ids (hub:owner/name); left out, the "
    "working folder is searched",
)
PARSER.add_argument(
    "--model",
    default="",
    metavar="PATH",
    help="the base: a folder or hub id. Left out, the first in models/, else lab:base, which comes with sftlab and is "
    "too small for real text",
)
PARSER.add_argument("--to", default="sft.yaml", metavar="FILE", help="the config to write (sft.yaml)")
PARSER.add_argument("--overwrite", action="store_true", help="write it though there is one")
_MOST_TOLD = 10
_MOST_OF_A_NAME = 28  # characters per line on a screen of 80 columns


def main(arguments: list[str]) -> int:
    """Survey, write and show."""
    if {"-h", "--help"} & set(arguments):
        PARSER.print_help()
        return 0
    options = PARSER.parse(arguments)
    to = Path(options.to)
    if to.exists() and not options.overwrite:
        raise ValueError(f"--to: {to} exists; name another file, or give --overwrite")
    files, passed_over = _surveyed(options.files)
    from sftlab.starter import Machine, Model, Starter, local_model

    usable = [file for file in files if file.reader is not None]
    if not usable:
        told = [f"{file.path}: {_trouble(file)}" for file in files[:_MOST_TOLD]] or ["no data file is here: name some"]
        raise ValueError("\n  ".join(["init: there is nothing to train on", *told, _OWN_READER]))
    starter = Starter(usable, Model.at(options.model or local_model(Path())), Machine.here())
    _print(files, starter.abilities, {path: lengths.mean() for path, lengths in starter.lengths.items()})
    unread = [_OWN_READER] if any(file.reader is None for file in files) else []
    show(
        *(f"Not used: {line}" for line in passed_over[:_MOST_TOLD]),
        *unread,
        f"Machine: {starter.machine}. Model: {starter.model.path}.",
    )
    for warning in starter.warnings:
        show(textwrap.fill(f"Warning: {warning}", 80, subsequent_indent="  ", break_on_hyphens=False))
    write_text(to, starter.text())
    show(f"Wrote {to}. Its plan:", "")
    from sftlab.commands.plan import main as plan

    plan(["--config", str(to)])
    show("", f"Look at examples: sftlab show --config {to}", f"Train:            sftlab fit --config {to}")
    return 0


_OWN_READER = "What no reader fits takes a reader of your own, a few lines: sftlab docs extending/ability"


def _surveyed(given: Sequence[str]) -> tuple[list[Survey], list[str]]:
    """Return what the files hold, and which files of a search were skipped, with the reason.

    Raises:
        ValueError: A named file does not exist.
    """
    from sftlab.data.records import HUB
    from sftlab.data.survey import find_files, survey

    files, passed_over = [], []
    for name in given or ["."]:
        if not name.startswith(HUB) and not Path(name).exists():
            raise ValueError(f"init: there is no file {name}")
        is_folder = Path(name).is_dir()
        for path in [str(path) for path in find_files(Path(name))] if is_folder else [name]:
            found = survey(path)
            if not is_folder or (found.reader is not None and not found.looks_held_out):
                files.append(found)
            elif found.reader is not None:
                passed_over.append(f"{path}: its name says that it is there to evaluate with; name it to train on it")
            elif found.num_records or not given:
                passed_over.append(f"{path}: {_trouble(found)}")
    unique = {file.path: file for file in files}
    return list(unique.values()), passed_over


def _trouble(file: Survey) -> str:
    keys = f"; its keys are {', '.join(file.keys[:8])}" if file.keys else ""
    return file.trouble + keys


def _shared_folder(paths: Sequence[str]) -> str:
    """Return the folder that contains all, printed once above their names; empty if there is none, as for hub ids."""
    from sftlab.data.records import HUB

    is_local = not any(path.startswith(HUB) for path in paths)
    is_same_kind = len({Path(path).is_absolute() for path in paths}) == 1
    shared = os.path.commonpath([str(Path(path).parent) for path in paths]) if is_local and is_same_kind else ""
    return "" if shared == os.sep else shared


def _print(files: Sequence[Survey], abilities: dict[str, list[Survey]], tokens: dict[str, float]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ability_of = {file.path: name for name, mine in abilities.items() for file in mine}
    folder = _shared_folder([file.path for file in files])
    if folder:
        show(f"In {folder}:")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = [file.path if not folder else str(Path(file.path).relative_to(folder)) for file in files]
    table.add_column("file", overflow="fold", min_width=min(max(map(len, names)), _MOST_OF_A_NAME))
    for column in ("records", "tokens each"):
        table.add_column(column, justify="right")
    for column in ("keys", "read by", "ability"):
        table.add_column(column, overflow="fold")
    for file, name in zip(files, names, strict=True):
        mean = f"{tokens[file.path]:,.0f}" if file.path in tokens else "-"
        read_by = type(file.reader).__name__ if file.reader else file.trouble
        cells = (name, file.count_words, mean, ", ".join(file.keys[:5]), read_by, ability_of.get(file.path, "-"))
        table.add_row(*map(Text, cells))
    screen().print(table)
