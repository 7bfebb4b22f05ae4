"""The embedded abilities: generated word problems, small functions and general requests, each with an exact check.

A fourth, ``text``, is what a base model reads before fine-tuning: sums, source code and lists in other words.

No download and no licence question. The three share their names and things, so that what one teaches about copying
helps the others, as in real data; the general requests touch arithmetic and Python in a chatty style, as ShareGPT does.
Whether a conversation may be trained or is kept for tests is decided by a hash of its first prompt, so the two never
meet.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from sftlab.data.conversation import Conversation, Turn
from sftlab.lab.python import LabPythonError, run_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAB_VERSION = 2
_PATIENCE = 20_000  # samples drawn in a row without a new one before giving up
# Attention heads that copy form sooner from larger first weights than LLaMA's 0.02, which is for wider matrices.
_SHAPE = {"max_position_embeddings": 1024, "tie_word_embeddings": True, "initializer_range": 0.05}
LAB_SIZES: dict[str, dict[str, Any]] = {
    "lab-small": {
        "hidden_size": 128,
        "intermediate_size": 336,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **_SHAPE,
    },
    "lab-base": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        **_SHAPE,
    },
    "lab-large": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        **_SHAPE,
    },
}

NAMES = (
    "Tom Ana Ben Mia Leo Zoe Sam Ivy Max Eva Raj Lin Omar Nora Hugo Tara Finn Ruth Alan Kate "
    "Yara Paul Rosa Ken Lucy Amir Dora Igor Jane Theo"
).split()
THINGS = (
    "apples books coins pens cards shells stamps marbles cookies stones plates ropes lamps shoes cups "
    "boxes hats keys leaves maps nuts oranges pears rings socks spoons toys balls bags eggs"
).split()
VARIABLES = "x n a value num count total".split()
FUNCTIONS = "f solve compute apply run task work".split()


class Sample(NamedTuple):
    """One generated conversation and what its answers are checked against."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    reference: Any
    kind: str


class LabProblem(NamedTuple):
    """A test problem: prompts asked in turn, and what the answers are checked against (JSON-able)."""

    uid: str
    prompts: tuple[str, ...]
    reference: Any
    kind: str


# math


def _math(rng: random.Random) -> Sample:
    name, thing, held = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 12)
    question, lines = f"{name} has {held} {thing}.", []
    num_steps = rng.randint(1, 2)
    for _ in range(num_steps):
        kind = rng.choice(("more", "less", "times")) if held > 3 else "more"
        if kind == "more":
            other = rng.randint(2, 9)
            question += f" {name} {rng.choice(('buys', 'finds'))} {other} more."
            step, held = f"{held}+{other}", held + other
        elif kind == "less":
            other = rng.randint(1, min(9, held - 1))
            question += f" {name} gives away {other} of them."
            step, held = f"{held}-{other}", held - other
        else:
            other = rng.randint(2, 3)
            question += f" Then the number of {thing} becomes {other} times as large."
            step, held = f"{held}*{other}", held * other
        lines.append(f"{name} has {step}=<<{step}={held}>>{held} {thing}.")
    question += f" How many {thing} does {name} have now?"
    return Sample((question,), ("\n".join([*lines, f"#### {held}"]),), held, f"{num_steps} step{'s' * (num_steps > 1)}")


def _check_math(reference: Any, texts: Sequence[str]) -> tuple[bool, str | None, str]:
    found = re.findall(r"####\s*(-?\d[\d,]*(?:\.\d+)?)", texts[-1])
    if not found:
        return False, None, "no number after ####"
    right = Decimal(found[-1].replace(",", "")) == reference
    return right, found[-1], "as expected" if right else f"expected {reference}"


# code

_OPERATIONS = (
    ("adds {k} to {v}", "{v} + {k}"),
    ("subtracts {k} from {v}", "{v} - {k}"),
    ("multiplies {v} by {k}", "{v} * {k}"),
)


def _code(rng: random.Random) -> Sample:
    name, v = rng.choice(FUNCTIONS), rng.choice(VARIABLES)
    said, lines = [], []
    for _ in range(rng.randint(1, 2)):
        words, expression = rng.choice(_OPERATIONS)
        k = rng.randint(2, 20)
        said.append(words.format(k=k, v=v))
        lines.append(f"{v} = {expression.format(k=k, v=v)}")
    kind = rng.choice(("value", "list", "choice"))
    if kind == "value":
        question = f"Write a Python function {name} that {', then '.join(said)} and returns it."
        body = [f"def {name}({v}):", *(f"    {line}" for line in lines), f"    return {v}"]
        inputs: list[Any] = [1, 7, 30]
    elif kind == "list":
        question = (
            f"Write a Python function {name} that for each {v} of a list {', then '.join(said)} and returns the list."
        )
        body = [f"def {name}(items):", "    out = []", f"    for {v} in items:", *(f"        {line}" for line in lines)]
        body += [f"        out.append({v})", "    return out"]
        inputs = [[1, 5, 30], [0, 7], []]
    else:
        limit = rng.randint(3, 20)
        question = f"Write a Python function {name} that {said[0]} if {v} is larger than {limit} and returns it."
        body = [f"def {name}({v}):", f"    if {v} > {limit}:", f"        {lines[0]}", f"    return {v}"]
        inputs = [1, limit, limit + 1, 40]
    source = "\n".join(body)
    reference = [[given, run_function(source, [given])] for given in inputs]
    return Sample((question,), (source,), reference, kind)


def _check_code(reference: Any, texts: Sequence[str]) -> tuple[bool, str | None, str]:
    source = texts[-1].strip("\n")
    for given, wanted in reference:
        try:
            value = run_function(source, [given])
        except LabPythonError as error:
            return False, source, str(error)
        if value != wanted:
            said, asked, right = map(reprlib.repr, (value, given, wanted))  # long lists are cut short
            return False, source, f"gives {said} for {asked}, expected {right}"
    return True, source, "passes its tests"


# general


def _greeting(rng: random.Random) -> Sample:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    asked = rng.choice(("Please greet my friend {}, who likes {}.", "Could you say hello to {}, who likes {}?"))
    return _exact("greeting", (asked.format(name, thing),), (f"Hello, {name}! I hear that you like {thing}.",))


def _repeat(rng: random.Random) -> Sample:
    (first, second), times = rng.sample(THINGS, 2), rng.randint(2, 4)
    answer = f"Sure: {' '.join([first] * times)} {second}."
    return _exact("repeat", (f"Please say {first} {times} times and then {second}.",), (answer,))


def _order(rng: random.Random) -> Sample:
    first, second = rng.sample(THINGS, 2)
    opening = f"Say {first} and {second} the other way round."
    asked = rng.choice(("Which one did I say first?", "Which one did I say last?"))
    answer = first if "first" in asked else second
    return _exact("order", (opening, asked), (f"Here you go: {second} and {first}.", f"You said {answer}."))


def _memory(rng: random.Random) -> Sample:
    name, held, thing = rng.choice(NAMES), rng.randint(2, 12), rng.choice(THINGS)
    opening = f"Hi, I am {name} and I have {held} {thing}."
    asked, answer = rng.choice((("Who am I?", f"You are {name}."), ("What do I have?", f"You have {held} {thing}.")))
    return _exact("memory", (opening, asked), (f"Nice to meet you, {name}!", answer))


def _list(rng: random.Random) -> Sample:
    things = rng.sample(THINGS, rng.randint(2, 4))
    numbered = "\n".join(f"{number}. {thing}" for number, thing in enumerate(things, start=1))
    return _exact("list", (f"Make a numbered list: {', '.join(things)}.",), (numbered,))


def _sum(rng: random.Random) -> Sample:
    name, a, b = rng.choice(NAMES), rng.randint(2, 12), rng.randint(2, 9)
    asked = rng.choice(("Hi, {} here. What is {} plus {}?", "Hey, this is {}, do you know what {} plus {} is?"))
    return _exact("arithmetic", (asked.format(name, a, b),), (f"Hi {name}, it is {a + b}.",))


def _python(rng: random.Random) -> Sample:
    v, k, name = rng.choice(VARIABLES), rng.randint(2, 20), rng.choice(NAMES)
    asked = rng.choice(
        ("Hi, {n} here. How do I add {k} to {v} in Python?", "Hey, this is {n}, how do I add {k} to {v} in Python?")
    )
    return _exact("python", (asked.format(n=name, k=k, v=v),), (f"Hi {name}, just write {v} = {v} + {k}",))


def _exact(kind: str, prompts: tuple[str, ...], answers: tuple[str, ...]) -> Sample:
    return Sample(prompts, answers, list(answers), kind)


_GENERAL = (_greeting, _repeat, _order, _memory, _list, _sum, _python)


def _general(rng: random.Random) -> Sample:
    return rng.choice(_GENERAL)(rng)


def _check_general(reference: Any, texts: Sequence[str]) -> tuple[bool, str | None, str]:
    for number, (text, wanted) in enumerate(zip(texts, reference, strict=True), start=1):
        if text.strip() != wanted:
            return False, text.strip(), f"turn {number}: expected {wanted!r}"
    return True, texts[-1].strip(), "as expected"


# text: what a base model is trained on before any fine-tuning


def _tale(rng: random.Random) -> Sample:
    name, thing, held = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 30)
    opening, said = f"At first there were {held} {thing} and {name} counted them.", []
    for _ in range(rng.randint(2, 4)):
        other = rng.randint(2, 20)
        if held > other and rng.random() < 0.4:
            said.append(f"After {other} {thing} less it was {held}-{other}={held - other}.")
            held -= other
        elif held <= 20 and rng.random() < 0.3:
            factor = rng.randint(2, 3)
            said.append(f"The {thing} grew to {factor} times, {held}*{factor}={held * factor}.")
            held *= factor
        else:
            said.append(f"With {other} more {thing} it was {held}+{other}={held + other}.")
            held += other
    return _exact("tale", (opening,), (" ".join([*said, f"So {name} saw {held} {thing}."]),))


def _source(rng: random.Random) -> Sample:
    name, v, k, other = rng.choice(FUNCTIONS), rng.choice(VARIABLES), rng.randint(2, 20), rng.randint(2, 20)
    sign = rng.choice("+-*")
    lines = [f"def {name}({v}):", f"    if {v} > {other}:", f"        {v} = {v} {sign} {k}", f"    return {v}"]
    if rng.random() < 0.5:
        lines = [f"def {name}(items):", "    out = []", f"    for {v} in items:", f"        {v} = {v} {sign} {k}"]
        lines += [f"        out.append({v})", "    return out"]
    return _exact("source", (f"# {name} with {v} {sign} {k} and {other}",), ("\n".join(lines),))


def _echo(rng: random.Random) -> Sample:
    name, things = rng.choice(NAMES), rng.sample(THINGS, rng.randint(2, 4))
    listed = ", ".join(things)
    again = rng.choice((listed, " and ".join(things), ", ".join(reversed(things)), f"{things[0]} {things[0]}"))
    words = rng.choice((f"{name} repeats {again}.", f"{name} has {again} and it is {name} who has them."))
    return _exact("echo", (f"{name} brings {listed}.",), (words,))


def _text(rng: random.Random) -> Sample:
    return rng.choice((_tale, _source, _echo))(rng)


class _Ability(NamedTuple):
    generate: Callable[[random.Random], Sample]
    check: Callable[[Any, Sequence[str]], tuple[bool, str | None, str]]
    kinds: tuple[str, ...]


_ABILITIES = {
    "math": _Ability(_math, _check_math, ("1 step", "2 steps")),
    "code": _Ability(_code, _check_code, ("value", "list", "choice")),
    "general": _Ability(
        _general, _check_general, ("greeting", "repeat", "order", "memory", "list", "arithmetic", "python")
    ),
    "text": _Ability(_text, _check_general, ("tale", "source", "echo")),
}
_TOKENIZED = ("code", "general", "math")  # what the tokenizer is trained on


def _samples(
    ability: str, num_samples: int, split: str, seed: int, exclude: Sequence[str] = ()
) -> Iterator[tuple[str, Sample]]:
    """Samples with an id, none asked twice; one opening prompt in eight belongs to the test split."""
    if ability not in _ABILITIES:
        raise ValueError(f"data.abilities: {ability!r} has no generated data; there is {', '.join(_ABILITIES)}")
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r} is neither train nor test")
    kinds = _ABILITIES[ability].kinds
    if unknown := sorted(set(exclude) - set(kinds)):
        raise ValueError(f"data.abilities.{ability}.exclude: {unknown[0]!r} is not one of {', '.join(kinds)}")
    if set(kinds) <= set(exclude):
        raise ValueError(f"data.abilities.{ability}.exclude: every kind is left out")
    rng, generate = random.Random(f"{ability}/{split}/{seed}"), _ABILITIES[ability].generate
    seen: set[str] = set()
    refused = 0
    while len(seen) < num_samples:
        sample = generate(rng)
        uid, refused = _digest("\n".join(sample.prompts)), refused + 1
        wanted = (int(_digest(sample.prompts[0])[:2], 16) % 8 == 0) == (split == "test")
        if wanted and sample.kind not in exclude and uid not in seen:
            seen.add(uid)
            refused = 0
            yield uid, sample
        elif refused == _PATIENCE:
            raise ValueError(
                f"data.abilities.{ability}: only about {len(seen)} different {split} conversations can be generated"
                f"{' without ' + ', '.join(exclude) if exclude else ''}, not {num_samples}; ask for fewer"
            )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def lab_conversations(
    ability: str, num_examples: int, split: str = "train", seed: int = 0, exclude: Sequence[str] = ()
) -> Iterator[Conversation]:
    """Generated conversations, all different; the same arguments give the same ones, fewer give the first of them.

    Args:
        ability: math, code or general.
        num_examples: How many.
        split: train or test; no first prompt is in both.
        seed: Other seeds give other conversations.
        exclude: Kinds to leave out.

    Raises:
        ValueError: There is no such ability or split, or there are not so many different conversations.
    """
    for _, sample in _samples(ability, num_examples, split, seed, exclude):
        turns = []
        for prompt, answer in zip(sample.prompts, sample.answers, strict=True):
            turns += [Turn("user", prompt), Turn("assistant", answer)]
        yield Conversation(tuple(turns), sample.prompts[0])


def lab_problems(ability: str, num_problems: int, seed: int = 0) -> list[LabProblem]:
    """Test problems, all different; no training conversation asks the same."""
    return [
        LabProblem(uid, sample.prompts, sample.reference, sample.kind)
        for uid, sample in _samples(ability, num_problems, "test", seed)
    ]


def check_answer(ability: str, reference: Any, texts: Sequence[str]) -> tuple[bool, str | None, str]:
    """Whether the answers to a problem's prompts are right, what was read from them, and why."""
    return _ABILITIES[ability].check(reference, texts)


@functools.cache
def lab_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, at most 1,024 tokens, single digits, trained on generated text in about a second."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = ("\n".join(turn.text for turn in c.turns) for a in _TOKENIZED for c in lab_conversations(a, 1000))
    tokenizer.train_from_iterator((f"USER: {text} ASSISTANT: {text}" for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1024
    )
