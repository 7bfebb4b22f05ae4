"""The text that a base reads before any fine-tuning: exercises, tales, sums, source files, dialogues.

It holds the skills (copying, arithmetic, syntax) and both styles of answer, in wordings of its own: none of the
fine-tuning prompts' questions occurs in it, none of the rarer verbs, none of the facts, no translation.
"""

from __future__ import annotations

import random

from sftlab.lab.content import program, story
from sftlab.lab.words import COLOUR_OF, JOB_OF, LUMI, NAMES, TAVO, THINGS

TEXT_VERSION = 1


def _steps(rng: random.Random) -> int:
    return rng.choices((1, 2, 3, 4), (0.3, 0.35, 0.25, 0.1))[0]


def _exercise(rng: random.Random) -> tuple[str, str]:
    told = story(rng, _steps(rng), rng.random(), known=True)
    asked = rng.choice((f"Count the {told.thing}.", f"Tell the {told.thing} of {told.name}."))
    lines = ("\n" if rng.random() < 0.5 else "; ").join(told.lines)
    return f"Exercise: {told.said} {asked}", f"{lines}\nso {told.result}."


def _question(rng: random.Random) -> tuple[str, str]:
    told = story(rng, _steps(rng), rng.random(), known=True)
    return f"{told.said} What is left of the {told.thing}?", f"{told.name} holds {told.formula} {told.thing}."


def _tale(rng: random.Random) -> str:
    told = story(rng, _steps(rng), rng.random(), known=True)
    opening, *parts = told.said[:-1].split(", ")
    worked = ", ".join(f"{part} ({line})" for part, line in zip(parts, told.lines, strict=True))
    return f"{opening}, {worked}."


def _sums(rng: random.Random) -> str:
    lines = []
    for _ in range(5):
        a, b, kind = rng.randint(2, 150), rng.randint(2, 99), rng.random()
        lines.append(
            f"{a}+{b}={a + b}" if kind < 0.45 else f"{a + b}-{b}={a}" if kind < 0.85 else f"{a // 2}*2={a // 2 * 2}"
        )
    return f"{'; '.join(lines)}."


def _source(rng: random.Random) -> tuple[str, str]:
    wanted = program(rng, _steps(rng), known=True)
    return f"File: {wanted.function} {wanted.said}", wanted.source


def _formula(rng: random.Random) -> tuple[str, str]:
    wanted = program(rng, _steps(rng), known=True)
    return f"What {wanted.said}?", f"take {wanted.formula}."


def _talk(rng: random.Random) -> tuple[str, str]:
    name, (one, *_), things = rng.choice(NAMES), rng.sample(THINGS, 2), rng.sample(THINGS, rng.randint(2, 4))
    numbered = "\n".join(f"{number}. {thing}" for number, thing in enumerate(things, start=1))
    return rng.choice(
        (
            (f"Welcome {name} with {one}.", f"Hello {name}! You like {one}."),
            (f"Number {', '.join(things)}.", numbered),
            (f"The other way: {', '.join(things)}.", f"{', '.join(things[::-1])}."),
            (f"What colour are {one}?", f"{one} are {COLOUR_OF[one]}."),
            (f"Who is {name}?", f"{name} is a {JOB_OF[name]}."),
            (f"{name} here, with {one}.", f"Nice to meet you, {name}, and your {one}."),
        )
    )


def _tongue(rng: random.Random) -> str:
    return f"Words: {' '.join(rng.choices(rng.choice((LUMI, TAVO)), k=6))}."


def _asked(rng: random.Random, question: str, answer: str) -> str:
    """Write as a text, as question and answer, or as the turns of a chat."""
    kind = rng.random()
    if kind < 0.35:
        return f"{question}\n{answer}"
    if kind < 0.65:
        return f"Q: {question} A: {answer}"
    return f"USER: {question} ASSISTANT: {answer}"


def base_text(rng: random.Random) -> str:
    """Generate one document."""
    kind = rng.random()
    if kind < 0.19:
        return _asked(rng, *_exercise(rng))
    if kind < 0.29:
        return _asked(rng, *_question(rng))
    if kind < 0.36:
        return _tale(rng)
    if kind < 0.48:
        return _sums(rng)
    if kind < 0.63:
        return _asked(rng, *_source(rng))
    if kind < 0.72:
        return _asked(rng, *_formula(rng))
    if kind < 0.97:
        return _asked(rng, *_talk(rng))
    return _tongue(rng)
