"""What the lab's prompts are about: stories with a number at their end, and programs of a few steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from sftlab.lab.words import (
    DOWN,
    FUNCTIONS,
    KNOWN_VERBS,
    LESS,
    MORE,
    NAMES,
    THINGS,
    TIMES,
    UP,
    VARIABLES,
    frequent,
)

MAX_STEPS = 4


class Story(NamedTuple):
    """Who holds how many of what, step by step.

    Attributes:
        said: The sentence.
        lines: Each step worked out, ``12+3=15``.
        formula: All steps in one, of the sentence's own numbers.
        numbers: The numbers of the formula.
        result: How many there are at the end.
    """

    said: str
    name: str
    thing: str
    lines: tuple[str, ...]
    formula: str
    numbers: tuple[int, ...]
    result: int


class Program(NamedTuple):
    """What a function does, step by step.

    Attributes:
        said: The words.
        source: The function, one line a step.
        formula: All steps in one.
        tests: Arguments and what the function gives for them.
    """

    said: str
    function: str
    variable: str
    source: str
    formula: str
    tests: tuple[tuple[int, int], ...]


def num_steps(rng: random.Random, difficulty: float) -> int:
    """Draw 1 to ``MAX_STEPS`` from a binomial distribution."""
    return 1 + sum(rng.random() < difficulty for _ in range(MAX_STEPS - 1))


def story(rng: random.Random, steps: int, difficulty: float, known: bool = False) -> Story:
    """A story of some steps; ``known`` keeps to the verbs that a base has read."""
    most = KNOWN_VERBS["math"] if known else None
    name, thing, held = rng.choice(NAMES), rng.choice(THINGS), rng.randint(3, 20)
    said, lines, formula, numbers = f"{name} has {held} {thing}", [], str(held), [held]
    for _ in range(steps):
        kind, k = rng.random(), rng.randint(11, 99) if rng.random() < difficulty / 2 else rng.randint(2, 9)
        k += k == held  # one number said twice in a step would hide a wrong reading
        if kind < 0.12 and held <= 60:
            said, sign, k, after = f"{said}, doubles them", "*", 2, held * 2
        elif kind < 0.56 or held <= k:
            said, sign, after = f"{said}, {frequent(rng, MORE, most)} {k}", "+", held + k
        else:
            said, sign, after = f"{said}, {frequent(rng, LESS, most)} {k}", "-", held - k
        lines.append(f"{held}{sign}{k}={after}")
        formula = f"({formula})*{k}" if sign == "*" and len(lines) > 1 else f"{formula}{sign}{k}"
        numbers.append(k)
        held = after
    return Story(f"{said}.", name, thing, tuple(lines), formula, tuple(numbers), held)


def program(rng: random.Random, steps: int, known: bool = False) -> Program:
    """A program of some steps; ``known`` keeps to the verbs that a base has read."""
    v, f = rng.choice(VARIABLES), rng.choice(FUNCTIONS)
    said, ops = [], []
    for _ in range(steps):
        kind, k = rng.random(), rng.randint(2, 30)
        words, sign = (TIMES, "*") if kind < 0.2 else (UP, "+") if kind < 0.6 else (DOWN, "-")
        most = KNOWN_VERBS["times" if words is TIMES else "code"] if known else None
        said.append(f"{frequent(rng, words, most)} {v} by {k}")
        ops.append((sign, k))
    formula = v
    for number, (sign, k) in enumerate(ops):
        formula = f"{f'({formula})' if sign == '*' and number else formula} {sign} {k}"
    lines = [f"def {f}({v}):", *(f"    {v} = {v} {sign} {k}" for sign, k in ops), f"    return {v}"]
    tests = tuple((x, _applied(x, ops)) for x in (1, 7, 30))
    return Program(", ".join(said), f, v, "\n".join(lines), formula, tests)


def _applied(value: int, ops: Sequence[tuple[str, int]]) -> int:
    for sign, k in ops:
        value = value + k if sign == "+" else value - k if sign == "-" else value * k
    return value
