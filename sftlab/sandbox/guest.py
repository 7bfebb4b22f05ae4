"""Runs inside the sandbox: the program that answers calls, and the tests that make them, as two processes.

The source of this file is handed to a bare interpreter (``python -c``), so it imports nothing but the standard library.

    tests (trusted code only)  --- one line of JSON a call -->  program (generated code)
                               <-- plain data, or 'raised' ---

Tests and generated code never share an interpreter. The program learns the arguments of one call at a time and answers
with plain data, rebuilt by the tests' side with its own types: a patched ``assert``, a forged ``__eq__``, an exit code
or anything printed stays on the program's side, where it decides nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from itertools import islice
from typing import Any, BinaryIO

MAX_MESSAGE = 4 << 20
"""Bytes in one message at most."""
MAX_ITEMS = 100_000
"""Items read from an iterator at most."""

TAGGED: tuple[tuple[str, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("int", int, hex, lambda text: int(text, 16)),
    ("complex", complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    ("tuple", tuple, list, tuple),
    ("set", set, list, set),
    ("frozenset", frozenset, list, frozenset),
    ("dict", dict, lambda value: [list(pair) for pair in value.items()], dict),
    ("bytes", bytes, bytes.hex, bytes.fromhex),
    ("bytearray", bytearray, bytearray.hex, bytearray.fromhex),
    ("range", range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    ("keys", KeysView, list, lambda parts: dict.fromkeys(parts).keys()),
    ("values", ValuesView, list, lambda parts: dict(enumerate(parts)).values()),
    ("items", ItemsView, lambda value: [list(pair) for pair in value], lambda parts: dict(parts).items()),
    ("iterator", Iterator, lambda value: list(islice(value, MAX_ITEMS + 1)), iter),
)
"""Types that JSON lacks: tag, type, value to parts, parts to value."""
NUMBERS = {"Decimal": "decimal", "Fraction": "fractions"}


class CannotCross(BaseException):
    """The tests pass what is not plain data; no verdict is possible. Not an ``Exception``: tests cannot swallow it."""


class ProgramEnded(BaseException):
    """The program is gone or does not keep to the protocol. Not an ``Exception``: tests cannot swallow it."""


def encode(value: Any, opaque: Callable[[Any], int]) -> Any:
    """Convert a value to JSON; what is not plain data becomes a reference, numbered by ``opaque``."""
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [encode(item, opaque) for item in value]
    if type(value).__name__ in NUMBERS and type(value).__module__ in NUMBERS.values():
        return {type(value).__name__: str(value)}
    for tag, kind, take_apart, _ in TAGGED:
        if isinstance(value, kind):
            parts = take_apart(value)
            if tag == "iterator" and len(parts) > MAX_ITEMS:
                raise ValueError(f"an iterator of more than {MAX_ITEMS} items")
            return {tag: encode(parts, opaque)}
    return {"object": opaque(value)}


def decode(form: Any, resolve: Callable[[int], Any]) -> Any:
    """Undo ``encode``; references are looked up by ``resolve``.

    Raises:
        ValueError: (or another ``Exception``) for anything that ``encode`` does not write.
    """
    if isinstance(form, list):
        return [decode(item, resolve) for item in form]
    if not isinstance(form, dict):
        return form
    [(tag, parts)] = form.items()
    if tag == "object":
        return resolve(int(parts))
    if tag in NUMBERS:
        return getattr(importlib.import_module(NUMBERS[tag]), tag)(str(parts))
    for name, _, _, put_together in TAGGED:
        if name == tag:
            return put_together(decode(parts, resolve))
    raise ValueError(f"unknown tag {tag!r}")


def confine(limits: dict[str, int]) -> None:
    """Limit this process permanently by the given limits (``cpu``, ``as``, ...), then become an unprivileged user."""
    uid = limits.pop("uid", None)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, wanted in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        hard = resource.getrlimit(number)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (limit, limit))


def keep_only(*kept: int) -> None:
    """Close every file descriptor but the given ones, and point the standard streams at nothing."""
    last = 2
    for number in [*sorted(kept), 1 << 20]:
        os.closerange(last + 1, number)
        last = number
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)


def stand_by(alive: int) -> None:
    """Continue in a child; this process waits to be killed, or for ``alive`` to close with its owner.

    Bubblewrap exits with its second process and leaves its first for someone else to bury; killed from outside while
    the second still stands, it buries it itself. And one that was only starting when its owner died lives on.
    """
    if os.fork():
        keep_only(alive)
        os.read(alive, 1)
        os.kill(-1, signal.SIGKILL)  # everything in this namespace
        os._exit(1)
    os.close(alive)


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message; a longer one than the other side would read is refused with ValueError."""
    line = json.dumps(message).encode()
    if len(line) >= MAX_MESSAGE:
        raise ValueError(f"an answer of {len(line)} bytes; {MAX_MESSAGE} at most")
    stream.write(line + b"\n")
    stream.flush()


class Program:
    """Answers calls on the objects of one piece of generated code."""

    def __init__(self) -> None:
        self.module = types.ModuleType("solution")
        self.objects: list[Any] = []

    def keep(self, value: Any) -> int:
        """Return the number of an object that stays here."""
        self.objects.append(value)
        return len(self.objects) - 1

    def ready(self) -> bool:
        """Report readiness, before any generated code is sent."""
        return True

    def load(self, source: str) -> None:
        """Run the source as a module."""
        sys.modules["solution"] = self.module
        exec(compile(source, "<solution>", "exec"), self.module.__dict__)

    def name(self, name: str) -> Any:
        """Return a global of the source."""
        if name not in self.module.__dict__:
            raise NameError(f"the program defines no {name!r}")
        return self.module.__dict__[name]

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call an object."""
        return function(*args, **kwargs)

    def get(self, owner: Any, name: str) -> Any:
        """Read an attribute."""
        return getattr(owner, name)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Write an attribute."""
        setattr(owner, name, value)

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Answer until the other side closes."""
        for line in requests:
            verb, *forms = json.loads(line)
            try:
                values = [decode(form, self.objects.__getitem__) for form in forms]
                send(answers, {"value": encode(getattr(self, verb)(*values), self.keep)})
            except BaseException as error:
                text = "no message"
                with contextlib.suppress(BaseException):
                    text = str(error)[:200]
                send(answers, {"raised": type(error).__name__, "text": text})


class Remote:
    """A stand-in for an object of the program: calls and attributes go there; it only equals itself."""

    __slots__ = ("_peer", "_place")

    def __init__(self, peer: Peer, place: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_place", place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._peer.ask("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)


class Peer:
    """The tests' end of the connection."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self.requests, self.answers = requests, answers
        self.raised: Exception | None = None

    @staticmethod
    def place(value: Any) -> int:
        """Return the number of a remote object; anything else that is not plain data cannot be sent."""
        if isinstance(value, Remote):
            return value._place
        raise CannotCross(f"the test passes a {type(value).__name__}, which is not plain data")

    def ask(self, verb: str, *values: Any) -> Any:
        """Let the program do something; its exceptions are raised here, as an ``Exception`` of the same name.

        Raises:
            ProgramEnded: no answer, or one that is none.
            CannotCross: the values are not plain data.
        """
        message = [verb, *(encode(value, self.place) for value in values)]
        try:
            send(self.requests, message)
            line = self.answers.readline(MAX_MESSAGE + 1)
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise ProgramEnded("the answer is too long" if line else "the program ended before it answered")
        try:
            answer = json.loads(line)
            if "raised" not in answer:
                return decode(answer["value"], lambda place: Remote(self, place))
            name, text = str(answer["raised"])[:100], str(answer["text"])[:200]
        except Exception:
            raise ProgramEnded("the program sent something that is not an answer") from None
        self.raised = rebuild(name, text)
        raise self.raised


def rebuild(name: str, text: str) -> Exception:
    """Return an exception of the built-in class of that name; one that is no ``Exception`` keeps only its name."""
    kind = getattr(builtins, name, None)
    with contextlib.suppress(Exception):
        # Not the two that end loops: ``all(map(candidate, cases))`` would take them for the end of the cases.
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
            return kind(text)
    return type(name, (Exception,), {})(text)


def failed_line(error: BaseException, test: str) -> str:
    """Return the line of the tests that raised the error."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<test>":
            number = trace.tb_lineno
        trace = trace.tb_next
    return test.split("\n")[number - 1].strip() if number else ""


def run_tests(task: dict[str, Any], peer: Peer) -> tuple[bool | None, str]:
    """Load the program there and run the tests here; return whether they passed (None if unknown) and why."""
    try:
        peer.ask("load", task["solution"])
        space: dict[str, Any] = {"__name__": "test"}
        exec(compile(task["prompt"], "<prompt>", "exec"), space)
        space.update({name: peer.ask("name", name) for name in task["names"]})
        exec(compile(task["test"], "<test>", "exec"), space)
    except CannotCross as error:
        return None, str(error)
    except ProgramEnded as error:
        return False, str(error)
    except BaseException as error:
        line = failed_line(error, task["test"])
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        told = f"{reason}, at: {line}" if line else reason
        broken_test = isinstance(error, ImportError | SyntaxError) and error is not peer.raised
        return (None if broken_test else False), " ".join(told[:300].split())
    return True, "passed"


def main(limits: dict[str, int], requests: int, answers: int, verdict: int = -1, alive: int = -1) -> None:
    """Run the program, or, if there is a file descriptor for the verdict, the tests; the task is standard input."""
    task = json.loads(sys.stdin.buffer.read()) if verdict >= 0 else None
    confine(limits)
    if alive >= 0:
        stand_by(alive)
    if task is None:
        keep_only(requests, answers)
        Program().serve(os.fdopen(requests, "rb"), os.fdopen(answers, "wb"))
    else:
        keep_only(requests, answers, verdict)
        peer, report = Peer(os.fdopen(requests, "wb"), os.fdopen(answers, "rb")), os.fdopen(verdict, "wb")
        # What goes wrong before this line is the sandbox's fault; after it, the program's.
        send(report, {"ready": peer.ask("ready")})
        passed, reason = run_tests(task, peer)
        send(report, {"passed": passed, "reason": reason})
    os._exit(0)


if __name__ == "__main__" and len(sys.argv) > 1:
    main(**json.loads(sys.argv[1]))
