"""Configs that ship with the package: ``sftlab:dmt`` is configs/dmt.yaml, wherever sftlab is installed.

In a checkout they are the files of ``configs/``; a wheel contains the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftlab.nearest import nearest

PREFIX = "sftlab:"
FOLDER = Path(__file__).parent / "configs"
DOCS = Path(__file__).parent / "docs"
_OPTIONS = ("--config", "-c")


def names() -> list[str]:
    """Return names of all shipped configs, such as ``dmt`` and ``studies/rq3``."""
    found = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
    return sorted(found, key=lambda name: (name.count("/"), name))


def config_path(name: str | Path, beside: Path | None = None) -> Path:
    """Return the path of a config.

    Args:
        name: A path, or ``sftlab:`` and the name of a shipped config.
        beside: The folder that a relative path starts from; the working folder by default.

    Raises:
        ValueError: No shipped config has that name.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return (beside or Path()) / text
    asked, known = text.removeprefix(PREFIX).removesuffix(".yaml"), names()
    if asked in known:
        return FOLDER / f"{asked}.yaml"
    near = nearest(asked, known)
    hint = f"did you mean {PREFIX}{near}? " if near else ""
    raise ValueError(f"--config: {PREFIX}{asked} does not come with sftlab; {hint}There are {', '.join(known)}")


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line with ``sftlab:`` names of configs replaced by their paths.

    Raises:
        ValueError: No shipped config has such a name.
    """
    words: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        if equals and option in _OPTIONS and value.startswith(PREFIX):
            word = f"{option}={config_path(value)}"
        elif words and words[-1] in _OPTIONS and word.startswith(PREFIX):
            word = str(config_path(word))
        words.append(word)
    return words
