"""Output to a terminal: texts are shown literally and never interpreted.

Data may contain escape sequences that clear a screen or rename a window, square brackets that Rich would take for
markup, and characters that a terminal cannot encode; all of them are made harmless here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_OF_A_FILE, _LEAST_WIDTH = 80, 20  # columns without a terminal; below the minimum, Rich shows nothing
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}  # ESC becomes its picture, and so on
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD), **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)}
_PICTURES |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)  # change the direction of writing


def visible(text: object) -> str:
    """Return a text with control characters replaced by visible symbols, except line breaks and tabs."""
    return str(text).translate(_PICTURES)


def screen(stderr: bool = False, **options: Any) -> Console:
    """Return a Rich console that shows text literally: no markup, no emoji codes, no control characters.

    It is as wide as the terminal; without one, 80 columns, or as many as the variable COLUMNS says.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # on which Rich would exit with status 1

        def render(self, *arguments: Any, **keywords: Any) -> Iterable[Segment]:
            for segment in super().render(*arguments, **keywords):
                text, style, control = segment
                yield segment if control else Segment(visible(text), style)

    made = Screen(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
    if not made.is_terminal and "width" not in options:
        said = os.environ.get("COLUMNS", "")
        made.width = max(int(said), _LEAST_WIDTH) if said.isdecimal() and int(said) else _WIDTH_OF_A_FILE
    return made


def show(*lines: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Print plain lines."""
    print("\n".join(map(visible, lines)), file=file or sys.stdout, end=end, flush=True)


def complain(message: object) -> None:
    """Print a message for the user to stderr."""
    show(message, file=sys.stderr)


_SECONDS_IN_A_FILE = 5.0
_told_at = [0.0]  # when a line of progress was last written to a file


def tell_progress(what: str, done: int, total: int | None = None) -> None:
    """Show progress: on one line of a terminal, or as an occasional line of a file, at the start (0) and at the end."""
    is_last, is_terminal = total is not None and done >= total, sys.stderr.isatty()
    if done <= 1:
        _told_at[0] = time.monotonic()
    is_due = time.monotonic() - _told_at[0] >= _SECONDS_IN_A_FILE
    if done == 0 or is_last or is_terminal or is_due:
        _told_at[0] = time.monotonic()
        of, start = "" if total is None else f" of {total:,}", "\r" if is_terminal else ""
        end = "\n" if is_last or not is_terminal else ""
        print(f"{start}{visible(what)}: {done:,}{of}", end=end, file=sys.stderr, flush=True)


def never_fail_to_print() -> None:
    """Write characters that the encoding lacks as backslash escapes, and discard output to closed streams.

    Without a stream's descriptor, the next file that is opened would get its number, and what libraries print in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
