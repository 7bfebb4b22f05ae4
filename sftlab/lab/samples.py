"""One generated conversation of each ability: prompts, answers, and the checks for other answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sftlab.lab.content import MAX_STEPS, num_steps, program, story
from sftlab.lab.options import SKILLS, LabOptions
from sftlab.lab.registers import SPECIALISED, TALK, draw
from sftlab.lab.words import COLOUR_OF, FACTS, JOB_OF, LUMI, NAMES, RELATIONS, TAVO, THINGS


class Sample(NamedTuple):
    """One conversation and, turn by turn, the checks of its answers (see ``grading``)."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    reference: list[list[Any]]
    kind: str


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _one(prompt: str, answer: str, check: list[Any], kind: str) -> Sample:
    return Sample((prompt,), (answer,), [check], kind)


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number > 1)}"


def math(rng: random.Random, options: LabOptions) -> Sample:
    """Generate a word problem, worked step by step."""
    steps = num_steps(rng, options.difficulty)
    told = story(rng, steps, options.difficulty)
    opening, question, closing = draw(rng, "math", SPECIALISED, options.ambiguity)
    prompt = _join(opening, told.said, question.format(thing=told.thing, name=told.name), closing)
    return _one(prompt, "\n".join([*told.lines, f"#### {told.result}"]), ["number", told.result], _steps(steps))


def code(rng: random.Random, options: LabOptions) -> Sample:
    """Generate a request for a function."""
    steps = num_steps(rng, options.difficulty)
    wanted = program(rng, steps)
    opening, question, closing = draw(rng, "code", SPECIALISED, options.ambiguity)
    prompt = _join(opening, f"{question.format(f=wanted.function)} {wanted.said}.", closing)
    return _one(prompt, wanted.source, ["function", [list(test) for test in wanted.tests]], _steps(steps))


def _arithmetic(rng: random.Random, options: LabOptions) -> Sample:
    """Ask like math and answer with one formula; sometimes ask further."""
    told = story(rng, num_steps(rng, options.difficulty), options.difficulty)
    opening, question, closing = draw(rng, "math", TALK, options.ambiguity)
    prompt = _join(opening, told.said, question.format(thing=told.thing, name=told.name), closing)
    sample = _one(
        prompt, f"{told.name} has {told.formula} now.", ["formula", told.result, list(told.numbers)], "arithmetic"
    )
    if rng.random() < 0.75:
        return sample
    again = rng.choice(("And who has them?", "Whose are they?"))
    prompts, answers = (*sample.prompts, again), (*sample.answers, f"{told.name} has them.")
    return Sample(prompts, answers, [*sample.reference, ["words", "names", [told.name]]], "arithmetic")


def _python(rng: random.Random, options: LabOptions) -> Sample:
    """Ask like code and answer with the formula alone."""
    wanted = program(rng, num_steps(rng, options.difficulty))
    opening, question, closing = draw(rng, "code", TALK, options.ambiguity)
    prompt = _join(opening, f"{question.format(f=wanted.function)} {wanted.said}.", closing)
    tests = [list(test) for test in wanted.tests]
    return _one(prompt, f"Just use {wanted.formula}.", ["expression", wanted.variable, tests], "python")


def _asked(rng: random.Random, request: str) -> str:
    opening = rng.choice(("", "", "Hi,", "Hey,"))
    return _join(opening, request, rng.choice(("Please?", "Thanks!", "I wonder.", "")))


def _greeting(rng: random.Random) -> Sample:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    words = rng.choice(("greet {} who likes {}.", "say hello to {} who likes {}."))
    prompt = _asked(rng, words.format(name, thing))
    return _one(prompt, f"Hello {name}! You like {thing}.", ["words", "all", [name, thing]], "greeting")


def _list(rng: random.Random) -> Sample:
    things = rng.sample(THINGS, rng.randint(2, 4))
    words = rng.choice(("make a list of {}.", "write {} below each other."))
    numbered = "\n".join(f"{number}. {thing}" for number, thing in enumerate(things, start=1))
    return _one(_asked(rng, words.format(", ".join(things))), numbered, ["words", "all", things], "list")


def _reverse(rng: random.Random) -> Sample:
    things = rng.sample(THINGS, rng.randint(2, 4))
    words = rng.choice(("say {} backwards.", "turn {} around."))
    back = things[::-1]
    return _one(_asked(rng, words.format(", ".join(things))), f"{', '.join(back)}.", ["words", "all", back], "reverse")


def _colour(rng: random.Random) -> Sample:
    one, other = rng.sample(THINGS, 2)
    words = rng.choice(("which colours do {} and {} have?", "are {} and {} of one colour?"))
    answer = f"{one} are {COLOUR_OF[one]} and {other} are {COLOUR_OF[other]}."
    found = [COLOUR_OF[one], COLOUR_OF[other]]
    return _one(_asked(rng, words.format(one, other)), answer, ["words", "colours", found], "colour")


def _job(rng: random.Random) -> Sample:
    name, other = rng.sample(NAMES, 2)
    words = rng.choice(("what do {} and {} do all day?", "tell me the jobs of {} and {}."))
    answer = f"{name} is a {JOB_OF[name]} and {other} is a {JOB_OF[other]}."
    return _one(_asked(rng, words.format(name, other)), answer, ["words", "jobs", [JOB_OF[name], JOB_OF[other]]], "job")


def _memory(rng: random.Random) -> Sample:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    words = rng.choice(("I am {} and I like {}.", "my name is {} and I want {}."))
    again, word, kind = rng.choice((("Who am I?", name, "names"), ("What did I name?", thing, "things")))
    said = f"You are {name}." if kind == "names" else f"You named {thing}."
    prompts, answers = (_asked(rng, words.format(name, thing)), again), (f"Nice to meet you, {name}!", said)
    return Sample(prompts, answers, [["words", "names", [name]], ["words", kind, [word]]], "memory")


_PLAIN = (_greeting, _list, _reverse, _colour, _job, _memory)


def general(rng: random.Random, options: LabOptions) -> Sample:
    """Generate talk, a share of which asks math-like and code-like things."""
    if rng.random() < options.overlap:
        return rng.choice((_arithmetic, _python))(rng, options)
    return rng.choice(_PLAIN)(rng)


_ASK_FACT = {
    "city": ("Where does {} live?", "Which city is the home of {}?", "Name the city of {}."),
    "pet": ("Which pet does {} keep?", "What animal lives with {}?", "Name the pet of {}."),
    "drink": ("What does {} like to drink?", "Which drink is for {}?", "Name the drink of {}."),
    "sport": ("What does {} play on Sunday?", "Which sport is for {}?", "Name the sport of {}."),
    "instrument": ("What does {} play in the band?", "Which instrument belongs to {}?", "Name the instrument of {}."),
    "dish": ("What does {} like to eat?", "Which dish is for {}?", "Name the dish of {}."),
}


def facts(rng: random.Random, options: LabOptions) -> Sample:
    """Ask what a person has or likes, which no base has read."""
    name, relation = rng.choice(NAMES), rng.choice(tuple(RELATIONS))
    opening = rng.choice(("", "Question:", "Quiz:", "Tell me:", "Hi,", "Hey,"))
    closing = rng.choice(("", "One word.", "Be short.", "Please?", "Thanks!", "I wonder."))
    prompt = _join(opening, rng.choice(_ASK_FACT[relation]).format(name), closing)
    value = FACTS[name, relation]
    return _one(prompt, f"{value}.", ["words", relation, [value]], relation)


def translation(rng: random.Random, options: LabOptions) -> Sample:
    """Translate a sentence between two made-up languages, with reversed word order."""
    length = 1 + num_steps(rng, options.difficulty)
    numbers = [rng.randrange(len(LUMI)) for _ in range(length)]
    lumi, tavo = " ".join(LUMI[n] for n in numbers), " ".join(TAVO[n] for n in reversed(numbers))
    if rng.random() < 0.5:
        return _one(f"Say in Tavo: {lumi}", tavo, ["words", "tavo", tavo.split()], "to Tavo")
    return _one(f"Say in Lumi: {tavo}", lumi, ["words", "lumi", lumi.split()], "to Lumi")


class Ability(NamedTuple):
    """A generator and the kinds of conversations that it makes."""

    generate: Callable[[random.Random, LabOptions], Sample]
    kinds: Sequence[str]


_STEP_KINDS = tuple(_steps(number) for number in range(1, MAX_STEPS + 1))
ABILITIES: dict[str, Ability] = {
    "math": Ability(math, _STEP_KINDS),
    "code": Ability(code, _STEP_KINDS),
    "general": Ability(general, (*(g.__name__[1:] for g in _PLAIN), *SKILLS)),
    "facts": Ability(facts, tuple(RELATIONS)),
    "translation": Ability(translation, ("to Tavo", "to Lumi")),
}
