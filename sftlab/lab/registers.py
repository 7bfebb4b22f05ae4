"""How a prompt is worded: opening, question and closing, more often one way in a specialised ability, another in talk.

A register is a distribution over wordings. Because it is written down, what a perfect learner can know of a prompt's
origin can be computed (``predict``). Most specialised prompts are marked by their opening, however high the ambiguity:
a learner that has seen a few of them can tell. Talk is marked only where the ambiguity is low.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

MARKED = ("Problem:", "Question:")
BARE = ""
FRIENDLY = ("Hi,", "Hey,")
OPENINGS = (*MARKED, BARE, *FRIENDLY)
QUESTIONS = {
    "math": (
        "How many {thing} does {name} have now?",
        "How many {thing} are there finally?",
        "So how many {thing} does {name} own?",
        "How many {thing} is that in all?",
    ),
    "code": (
        "Write a function {f} that",
        "Define a function {f} that",
        "Make me a function {f} that",
        "Give me a function {f} that",
    ),
}
CLOSINGS = {
    "math": ("Find the number.", "Work it out.", "Please?", "Thanks!"),
    "code": ("Return the result.", "Make it run.", "Please?", "Thanks!"),
}
SPECIALISED, TALK = "specialised", "talk"
_BARE_OF_SPECIALISED = 0.25  # of the ambiguity: the share of specialised prompts without a mark


def _openings(register: str, ambiguity: float) -> list[float]:
    if register == TALK:
        return [0, 0, ambiguity, (1 - ambiguity) / 2, (1 - ambiguity) / 2]
    bare = _BARE_OF_SPECIALISED * ambiguity
    return [(1 - bare) / 2, (1 - bare) / 2, bare, 0, 0]


def _wordings(register: str, ambiguity: float) -> list[float]:
    """Return four questions or closings: the first two are a specialised ability's, the others talk's."""
    weights = [(1 - ambiguity) * own + ambiguity / 4 for own in (0.55, 0.45, 0, 0)]
    return weights if register == SPECIALISED else weights[::-1]


def draw(rng: random.Random, like: str, register: str, ambiguity: float) -> tuple[str, str, str]:
    """Draw opening, question and closing of a prompt.

    Args:
        rng: Random generator.
        like: math or code.
        register: SPECIALISED or TALK.
        ambiguity: See ``LabOptions``.
    """
    wordings = _wordings(register, ambiguity)
    return (
        rng.choices(OPENINGS, _openings(register, ambiguity))[0],
        rng.choices(QUESTIONS[like], wordings)[0],
        rng.choices(CLOSINGS[like], wordings)[0],
    )


def probabilities(register: str, ambiguity: float) -> Iterator[tuple[tuple[int, int, int], float]]:
    """Return the probability in a register of each combination of opening, question and closing (by number)."""
    openings, wordings = _openings(register, ambiguity), _wordings(register, ambiguity)
    for opening, question, closing in itertools.product(range(len(OPENINGS)), range(4), range(4)):
        yield (opening, question, closing), openings[opening] * wordings[question] * wordings[closing]
