"""Checks whether an answer is right. Any style is accepted: no marker and no wording is needed.

A word problem asks for a number, a request for code for a working function, and talk that sounds like either for the
calculation, as one formula of the prompt's own numbers. So a chatty answer to a word problem is right if it states the
number, and a worked answer in talk is right if it shows the formula.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sftlab.lab.python import LabPythonError, run_function
from sftlab.lab.words import COLOURS, JOBS, LUMI, NAMES, RELATIONS, TAVO, THINGS

Verdict = tuple[bool, str | None, str]
_CLASSES: dict[str, frozenset[str]] = {
    "names": frozenset(NAMES),
    "things": frozenset(THINGS),
    "all": frozenset((*NAMES, *THINGS)),
    "colours": frozenset(COLOURS),
    "jobs": frozenset(JOBS),
    "lumi": frozenset((*LUMI, *TAVO)),
    "tavo": frozenset((*LUMI, *TAVO)),
    **{relation: frozenset(values) for relation, values in RELATIONS.items()},
}
_NUMBER = re.compile(r"(?<![\w.,])-?\d[\d,]*(?:\.\d+)?|(?<=[=#$*+/])-?\d[\d,]*(?:\.\d+)?")


def grade_turns(reference: Sequence[Sequence[Any]], texts: Sequence[str]) -> Verdict:
    """Grade all answers of a conversation; report the first wrong one, or, if all are right, the first.

    Args:
        reference: For each turn the check's name and its arguments.
        texts: The answer of each turn.
    """
    first: Verdict | None = None
    for number, ((check, *wanted), text) in enumerate(zip(reference, texts, strict=True), start=1):
        verdict = _CHECKS[check](text, *wanted)
        if not verdict[0]:
            return verdict if len(texts) == 1 else (False, verdict[1], f"turn {number}: {verdict[2]}")
        first = first or verdict
    assert first is not None, "a conversation has an answer"
    return first


def style_of(text: str) -> str:
    """Return how an answer is written: ``worked`` (steps or a marked number), ``function`` or ``talk``."""
    if re.search(r"^\s*def ", text, re.MULTILINE):
        return "function"
    return "worked" if "####" in text or re.search(r"\d\s*=\s*-?\d", text) else "talk"


def _number(text: str, wanted: int) -> Verdict:
    """Check the last number stated; the end of a formula does not count as a result."""
    stated = [m for m in _NUMBER.finditer(text) if not re.search(r"[\d)a-z]\s*[-+*/]\s*$", text[: m.start()])]
    last = list(re.finditer(r"\d[\d,]*(?:\.\d+)?", text))
    if not last or not stated or stated[-1].end() != last[-1].end():
        return False, None, "states no number" if not last else "a formula, but no result"
    found = stated[-1].group()
    try:
        right = float(found.replace(",", "")) == wanted
    except ValueError:
        return False, found, "no number"
    return right, found, "as expected" if right else f"expected {wanted}"


def _function(text: str, tests: Sequence[Sequence[int]]) -> Verdict:
    """Check that the first function in the answer returns the expected values."""
    found = re.search(r"^def .*(?:\n(?:[ \t]+.*)?)*", text, re.MULTILINE)
    if found is None:
        return False, None, "no function"
    source = found.group().rstrip()
    for given, wanted in tests:
        try:
            value = run_function(source, [given])
        except LabPythonError as error:
            return False, source, str(error)
        if value != wanted:
            said, asked, right = map(reprlib.repr, (value, given, wanted))  # long lists are truncated
            return False, source, f"gives {said} for {asked}, expected {right}"
    return True, source, "passes its tests"


def _formulas(text: str, variable: str) -> Iterator[str]:
    """Return runs of numbers, the variable, signs and brackets in a text."""
    atom = rf"(?:\d+|{re.escape(variable)}(?!\w)|[-+*()])" if variable else r"(?:\d+|[-+*()])"
    for line in text.splitlines():
        for match in re.finditer(rf"(?<!\w){atom}(?: ?{atom})*", line):
            yield match.group()


def _value(formula: str, variable: str, given: int) -> Any:
    try:
        return run_function(f"def f({variable or 'x'}):\n    return {formula}", [given])
    except LabPythonError:
        return None


def _formula(text: str, result: int, numbers: Sequence[int]) -> Verdict:
    """Check that some formula in the answer, of the prompt's numbers, has the result."""
    found = None
    for formula in _formulas(text, ""):
        used = sorted(map(int, re.findall(r"\d{1,9}", formula)))
        found = formula if len(used) > 1 else found
        if used == sorted(numbers) and _value(formula, "", 0) == result:
            return True, formula, "as expected"
    return False, found, f"expected a formula of {', '.join(map(str, numbers))} for {result}"


def _expression(text: str, variable: str, tests: Sequence[Sequence[int]]) -> Verdict:
    """Check that some expression of the variable in the answer has the expected values."""
    found = None
    for formula in _formulas(text, variable):
        if all(_value(formula, variable, given) == wanted for given, wanted in tests):
            return True, formula, "as expected"
        found = formula if re.search(r"\d", formula) else found
    return False, found, f"expected an expression of {variable} that gives {tests[0][1]} for {tests[0][0]}"


def _words(text: str, of: str, wanted: Sequence[str]) -> Verdict:
    """Check that the answer names the wanted words of a class, in order, and no other word of it."""
    named = [word for word in re.findall(r"\w+", text) if word in _CLASSES[of]]
    right = named == list(wanted)
    return right, " ".join(named) or None, "as expected" if right else f"expected {' '.join(wanted)}"


_CHECKS: dict[str, Callable[..., Verdict]] = {
    "number": _number,
    "function": _function,
    "formula": _formula,
    "expression": _expression,
    "words": _words,
}
