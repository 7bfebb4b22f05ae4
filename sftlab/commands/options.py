"""Command-line options: argparse reads those of a command; all other words belong to the config or are errors.

options, config = parser.split(["--to", "x", "--schedule.k=0.25"])     own options, and words for the config
options = parser.parse(["--weights=math=1", "FOLDER"])                 own options alone
"""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sftlab.config import option_pairs
from sftlab.files import checked_name
from sftlab.nearest import did_you_mean
from sftlab.shipped import config_path

_WIDTH = 80
_CONFIG = """
  --config FILE          a config of fit; several are merged; sftlab:dmt and others come with the package
  --schedule.k 0.25      any key of the config can be given here too
"""


class CommandParser(argparse.ArgumentParser):
    """Parses options as ``--x v`` and ``--x=v``, never abbreviated; ``-`` and ``_`` in names are the same.

    A mistake raises a ValueError instead of exiting.

    Args:
        command: Name of the command.
        description: What it does.
        takes_config: Whether words that are not options of the command, such as ``--config``, belong to the config.
        notes: Text at the end of the help.
    """

    def __init__(self, command: str, description: str, takes_config: bool = False, notes: str = "") -> None:
        super().__init__(
            prog=f"python -m sftlab {command}",
            description=_wrapped(description.replace("\n", " ") if "  " not in description else description),
            epilog=_wrapped((("options of the config:" + _CONFIG) if takes_config else "") + notes),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=f"python -m sftlab {command} --config FILE [options] [any option of fit]" if takes_config else None,
        )
        self._command, self.takes_config = command, takes_config
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Like argparse, but keep the words, so that ``error`` can name a misspelt option instead of a missing one."""
        self._given = [self._as_declared(word) for word in args or ()]
        return super().parse_known_args(self._given, namespace)

    def _as_declared(self, word: str) -> str:
        """Return a word of the command line with ``-`` and ``_`` as the option is declared."""
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        declared = {option.replace("_", "-"): option for option in self._option_string_actions}
        return declared.get(name.replace("_", "-"), name) + equals + value

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the options of a command that takes no config.

        Raises:
            ValueError: An option or argument is unknown, missing, or has an invalid value.
        """
        options, rest = self.parse_known_args(list(arguments))
        self.refuse(rest)
        return options

    def split(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the command's own options, and the words that are left for the config.

        Raises:
            ValueError: An option of the command is missing or has an invalid value, or a word belongs to no option.
        """
        options, rest = self.parse_known_args(list(arguments))
        for before, word in zip([None, *rest], rest, strict=False):
            if not word.startswith("-") and (before is None or not before.startswith("-") or "=" in before):
                self.error(f"{word!r} belongs to no option")
        return options, rest

    def refuse(self, rest: Sequence[str]) -> None:
        """Raise a ValueError if there are words that no option takes."""
        if not rest:
            return
        word = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        hint = did_you_mean(word, known, f"see {self._command} --help")
        what = "option" if word.startswith("-") else "argument"
        raise ValueError(f"{self._command} has no {what} {word}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError instead of exiting."""
        known = {option for action in self._actions for option in action.option_strings}
        words = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        if "required" in message and not self.takes_config:
            self.refuse([word for word in words if word not in known and "." not in word])
        raise ValueError(f"{self._command}: {message.removeprefix('argument ')}")


def _wrapped(text: str) -> str:
    """Wrap a text to the terminal; layouts keep their lines, a sentence over several lines is joined."""
    text = re.sub(rf"([^\n]{{{_WIDTH},}}[^.:\n])\n(?=\S)", r"\1 ", text)
    lines = (textwrap.wrap(line, _WIDTH, subsequent_indent=" " * _indent(line)) or [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def _indent(line: str) -> int:
    """Return the column at which wrapped text continues: after two spaces, so that second columns stay aligned."""
    start = len(line) - len(line.lstrip())
    gap = line.find("  ", start)
    return len(line) - len(line[gap:].lstrip()) if 0 < gap < _WIDTH // 2 else start


def whole_number(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """An option type: a whole number within bounds."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least:,} to {most:,}")
        return int(text)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """An option type: a number within bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return value

    return read


def names(text: str) -> list[str]:
    """An option type: names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seeds(text: str) -> list[int]:
    """An option type: seeds separated by commas."""
    return [whole_number(0, 2**32 - 1)(part.strip()) for part in text.split(",")]


def dotted(rest: Sequence[str]) -> dict[str, str]:
    """Yield names and values of ``--a.b v`` and ``--a.b=v``, for options whose names are not known beforehand."""
    return dict(option_pairs(list(rest)))


def existing_file(text: str) -> Path:
    """An option type: an existing file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def config_file(text: str) -> Path:
    """An option type: the path of a config, or ``sftlab:`` and the name of one that ships with the package."""
    try:
        return config_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--config: ")) from None


def output_folder(to: str) -> Path:
    """Return the folder that ``--to`` names, created if it does not exist.

    Raises:
        ValueError: It is not given, or is a file.
    """
    if not to:
        raise ValueError("--to: name the folder that results go to")
    folder = Path(to)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_folder(option: str, name: str) -> Path:
    """Return the folder that a model is written to: it must not exist, nor lie inside a run.

    Raises:
        ValueError: It exists, is no valid name, or lies inside a run.
    """
    from sftlab.run.folder import run_of

    folder = Path(name)
    if os.path.lexists(folder):
        raise ValueError(f"{option}: {folder} exists; name a new folder")
    checked_name(option, folder.name)
    if (run := run_of(folder.resolve())) is not None:
        raise ValueError(
            f"{option}: {folder} lies inside the run {run}, which reads its folders as its own; name another"
        )
    return folder


def wants_help(arguments: Sequence[str], parser: argparse.ArgumentParser) -> bool:
    """Print the help if it is requested or there are no arguments; return whether it was printed."""
    asked = not arguments or bool({"-h", "--help"} & set(arguments))
    if asked:
        parser.print_help()
    return asked
