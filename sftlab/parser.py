"""The parser of the command line, and its errors as messages for users."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sftlab.config import merged_config
from sftlab.credentials import unresolved


class LabParser(LightningArgumentParser):
    """A parser whose errors omit usage and failed attempts, and whose configs omit secrets of the environment."""

    def dump(self, *arguments: Any, **options: Any) -> str:
        """Write the config for a run's folder or ``--print_config``, with references to the environment unresolved."""
        return unresolved(super().dump(*arguments, **options), [merged_config(sys.argv[1:]), sys.argv])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Raise the informative part of a message as a ValueError."""
        raise ValueError(" ".join(_informative_lines(message)) or message)


def _informative_lines(message: str) -> list[str]:
    """Return the lines of a jsonargparse message that carry information."""
    noise = ("Given value", "Subtypes:", "Does not validate", "Errors:", "- Expected a <class 'NoneType'>")
    # If a class cannot be imported, the message begins with everything that was given, including secrets.
    message = re.sub(r"Not a valid subclass of .*?(?=Problem with given class_path)", "", message, flags=re.S)
    lines = [line.strip() for line in message.splitlines()]
    return [line for line in lines if line and not line.startswith(noise)]


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise errors of Lightning about conflicting options or missing packages as a ValueError: a user's mistake.

    Raises:
        ValueError: With Lightning's message.
    """
    try:
        yield
    except (MisconfigurationException, ImportError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except ValueError as error:
        if "Given value" not in str(error):
            raise
        # Keep why the last type failed; the given value may hold a key.
        lines = [line for line in _informative_lines(str(error)) if not line.startswith("- Expected a <class")]
        raise ValueError(" ".join(line.removeprefix("- ") for line in lines)) from error
