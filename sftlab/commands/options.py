"""A command's own options, taken out of a command line whose rest is the config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def take_options(arguments: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of these names that were given (``--name value`` or ``--name=value``), and everything else.

    An option without a value is the empty text. Of one given twice the last counts.
    """
    taken: dict[str, str] = {}
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        word = arguments[position]
        name, equals, value = word.removeprefix("--").partition("=")
        position += 1
        if not word.startswith("--") or name not in names:
            rest.append(word)
        elif equals:
            taken[name] = value
        elif position < len(arguments) and not arguments[position].startswith("--"):
            taken[name], position = arguments[position], position + 1
        else:
            taken[name] = ""
    return taken, rest


def output_folder(options: dict[str, str]) -> Path:
    """The folder that ``--to`` names, made if need be.

    Raises:
        ValueError: It is not given, or a file has its name.
    """
    if not options.get("to"):
        raise ValueError("--to: name the folder that results go to")
    folder = Path(options["to"])
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
