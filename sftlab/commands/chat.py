"""``chat``: talk to a stage of a run in the terminal, or to two side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sftlab.commands.options import CommandParser, number, wants_help, whole_number
from sftlab.screen import complain, screen, show

if TYPE_CHECKING:
    from rich.table import Table

    from sftlab.evaluate.backend import Dialogue
    from sftlab.evaluate.local import LocalModel

PARSER = CommandParser(
    "chat",
    "Talks with a model, by the template that it was trained with; with several, each answers the same lines.",
    notes="""
sftlab chat dmt                       the last stage of lightning_logs/dmt
sftlab chat dmt/specialised dmt       two stages side by side
Lines are read from the terminal or a pipe. /new begins a new conversation, Ctrl-C ends an answer, /quit or Ctrl-D the
talk.
""",
)
PARSER.add_argument(
    "models", nargs="+", metavar="MODEL", help="a run, run/stage, checkpoint, Hugging Face folder or hub id"
)
PARSER.add_argument(
    "--max_new_tokens", type=whole_number(1, 100_000), default=256, metavar="256", help="tokens of an answer at most"
)
PARSER.add_argument("--temperature", type=number(0, 100), default=0.0, metavar="0", help="0: the likeliest answer")
PARSER.add_argument("--seed", type=whole_number(0), default=0, metavar="0", help="of what a temperature draws")
PARSER.add_argument("--system", default="", metavar="TEXT", help="a system turn before the first line")
_NARROW = 30  # columns that an answer needs beside others


def main(arguments: list[str]) -> int:
    """Answer lines until there are no more."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    from transformers.utils import logging

    from sftlab.evaluate.local import LocalModel
    from sftlab.run.results import model_named

    logging.disable_progress_bar()
    with ExitStack() as stack:
        folders = [model_named(name, stack, complain) for name in options.models]
        models = [LocalModel.from_folder(folder) for folder in folders]
        names = [_name(name, folder) for name, folder in zip(options.models, folders, strict=True)]
        show(f"{' | '.join(names)}: /new begins a new conversation, /quit ends")
        _talk(models, names, options.system, options.max_new_tokens, options.temperature, options.seed)
    return 0


def _name(given: str, folder: str) -> str:
    """Return the user's name for a model, with the stage if it was left open."""
    path = Path(folder)
    is_open = path.parent.name == "stages" and path.name.partition("-")[2] not in given
    return f"{given} ({path.name})" if is_open else given


def _talk(
    models: Sequence[LocalModel], names: Sequence[str], system: str, most: int, temperature: float, seed: int
) -> None:
    from dataclasses import replace

    from sftlab.evaluate.backend import Dialogue
    from sftlab.tasks.task import Problem, Sampling

    sampling = Sampling(max_new_tokens=most, temperature=temperature, seed=seed)

    def begin() -> list[Dialogue]:
        return [Dialogue(Problem("chat", (), system=system), 0, sampling) for _ in models]

    talks = begin()
    for line in _lines():
        if line == "/quit":
            return
        if line == "/new":
            talks = begin()
            show("(a new conversation)")
            continue
        for talk in talks:
            talk.problem = replace(talk.problem, prompts=(*talk.problem.prompts, line))
        _answer(models, names, talks, most)
        if any(talk.missing for talk in talks):
            talks = begin()
            show("(a new conversation)")


def _lines() -> Iterator[str]:
    """Yield typed or piped lines, without blank ones."""
    is_typed = sys.stdin.isatty()
    while True:
        if is_typed:
            show("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if text := line.strip():
            if not is_typed:
                show(f"> {text}")
            yield text


def _answer(models: Sequence[LocalModel], names: Sequence[str], talks: Sequence[Dialogue], most: int) -> None:
    """Print one answer token by token; several in columns, or one below the other if there is no room."""
    console = screen()
    if len(talks) > 1 and console.width >= _NARROW * len(talks):
        _answer_in_columns(models, names, talks, most)
        return
    for model, name, talk in zip(models, names, talks, strict=True):
        if len(talks) > 1:
            show(f"{name}:")
        shown = ""

        def write(text: str) -> None:
            nonlocal shown
            if text.startswith(shown):
                show(text[len(shown) :], end="")
                shown = text

        model.reply(talk, most, write)
        answer = _text(talk)
        show(answer[len(shown) :] if answer.startswith(shown) else f"\n{answer}", "")


def _answer_in_columns(
    models: Sequence[LocalModel], names: Sequence[str], talks: Sequence[Dialogue], most: int
) -> None:
    """Print columns that grow on a terminal; the complete answers remain."""
    from rich.live import Live

    console, texts = screen(), ["" for _ in talks]
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for number, (model, talk) in enumerate(zip(models, talks, strict=True)):

            def write(text: str, number: int = number) -> None:
                texts[number] = text
                if console.is_terminal:
                    live.update(_columns(names, texts), refresh=True)

            model.reply(talk, most, write)
            texts[number] = _text(talk)
    console.print(_columns(names, texts))


def _text(talk: Dialogue) -> str:
    """Return the last answer, or why there is none."""
    if talk.missing:
        return talk.missing
    if not talk.complete[-1]:
        return f"{talk.texts[-1]} ..."
    return talk.texts[-1] if talk.texts[-1].strip() else "(an empty answer: it ended its turn at once)"


def _columns(names: Sequence[str], texts: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*map(Text, texts))
    return table
