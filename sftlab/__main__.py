"""``sftlab`` and ``python -m sftlab``: finds the command and imports only what it needs."""

import codecs
import locale
import os
import signal
import sys
import textwrap
import threading
from functools import partial
from importlib import import_module
from typing import Any

from sftlab.credentials import mask, secrets_of_environment
from sftlab.files import explain
from sftlab.nearest import nearest
from sftlab.screen import complain, never_fail_to_print, show

COMMANDS = {
    "init": "look at your files and this machine, write a config that fits, show its plan",
    "fit": "train the stages of a schedule",
    "plan": "print what a config would train, without loading model weights",
    "show": "show examples of a config with their supervised tokens coloured",
    "export": "turn a checkpoint into a Hugging Face folder",
    "evaluate": "score a run, a stage, a checkpoint or a Hugging Face folder",
    "represent": "map the abilities in the hidden states of checkpoints, layer by layer",
    "study": "plan and run a grid of runs; equal stages are trained once",
    "search": "choose runs that answer which composition is best, and how sure that is",
    "tag": "tag what users ask for; list conversations to drop by tag",
    "report": "write the page, figures and tables of a study",
    "leaks": "find evaluation problems in training data",
    "card": "show what a mixture is made of, as a page",
    "compare": "compare two runs, stages or result files problem by problem",
    "chat": "talk with a stage of a run, or with two side by side",
    "serve": "serve a stage to OpenAI-compatible clients",
    "runs": "list runs: state, stage, scores, age, size",
    "docs": "print a page of the documentation",
}
"""What each command does; each is a module in ``commands``."""
_AGAIN_AFTER_S = 0.05


def usage() -> str:
    """Return the commands, one line each."""
    start = " " * 12
    lines = [
        textwrap.fill(text, 80, initial_indent=f"  {name:<10}", subsequent_indent=start)
        for name, text in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: python -m sftlab COMMAND [options]",
            "",
            "Which data, how much of each ability, in which order?",
            "",
            *lines,
            "",
            "python -m sftlab COMMAND --help tells more, python -m sftlab docs: the manual.",
        ]
    )


def main(arguments: list[str]) -> int:
    """Run one command; a user's mistake gives one message and exit status 2."""
    never_fail_to_print()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except (ValueError, OSError, MemoryError, RecursionError, KeyboardInterrupt) as error:
        if os.environ.get("SFTLAB_DEBUG"):
            raise
        return _complain_of(error)


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        show(usage())
        return 0
    if name == "--version":
        show(import_module("sftlab").__version__)
        return 0
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"; did you mean {near!r}?" if near else ""
        complain(f"error: no command {name!r}{hint}\n\n{usage()}")
        return 2
    # Threads that wait should sleep: by default they spin, and a busy neighbour then slows training ten times and more.
    # It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, partial(_end, os.getpid()))
    return int(import_module(f"sftlab.commands.{name}").main(arguments[1:]) or 0)


def _end(owner: int, signum: int, _: object) -> None:
    """End on a scheduler's signal, removing half-written files on the way; a forked worker just ends."""
    if os.getpid() != owner:
        os._exit(128 + signum)
    signal.signal(signum, signal.SIG_IGN)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        complain("Ended by SIGTERM.")
    sys.exit(128 + signum)


def _complain_of(error: BaseException) -> int:
    """Print one message and return the exit status: 2 for a user's mistake, 1 for the machine's, 130 after Ctrl-C."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        complain("Interrupted.")
        return 128 + signal.SIGINT
    if isinstance(error, ValueError):
        complain(f"error: {mask(str(error), *secrets_of_environment(), urls=True)}")
        return 2
    if isinstance(error, RecursionError):
        complain("error: something that was read is nested too deeply; SFTLAB_DEBUG=1 shows where")
        return 2
    complain(f"error: {explain(error) if isinstance(error, OSError) else 'out of memory'}")
    return 2 if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)) else 1


def _heed_ends() -> None:
    """Raise the exception of a signal again a moment later if Python swallows it (in ``__del__``, say)."""
    tell = sys.unraisablehook

    def again(ignored: Any) -> None:
        error, is_main = ignored.exc_value, threading.current_thread() is threading.main_thread()
        if not is_main or not isinstance(error, (SystemExit, KeyboardInterrupt)):
            tell(ignored)
            return
        signum = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, lambda *_: sys.exit(128 + signum))
        threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), signum)).start()

    sys.unraisablehook = again


def _read_as_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale is another: libraries read configs and models by it.

    What is printed stays in the terminal's encoding.
    """
    if os.environ.get("PYTHONUTF8") != "1" and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        encoding = getattr(sys.stdout, "encoding", "ascii")
        os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def console_script() -> None:
    """Start the command ``sftlab``; as with ``python -m``, modules in the working folder can be imported."""
    try:
        sys.path.insert(0, os.getcwd())
    except FileNotFoundError:
        complain("error: the working folder no longer exists: change to another one")
        sys.exit(2)
    _read_as_utf8()
    _heed_ends()
    try:
        status = main(sys.argv[1:])
    finally:  # what remains is Python's own shutdown, in which an exception would print a traceback
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
    sys.exit(status)


if __name__ == "__main__":
    console_script()
