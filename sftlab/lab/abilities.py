"""The lab's abilities: generated conversations to train on, unseen test problems, and exact checks of answers.

No download and no licence question. ``math`` is worked step by step, ``code`` runs, ``general`` talks, and a share of
its prompts looks like math and like code and is answered in another style; ``facts`` and ``translation`` are there for
studies of more than three abilities. Names and things are common to all, as in real data.

Whether a conversation may be trained or is kept for tests is decided by a hash of its first prompt, so the two never
meet, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sftlab.lab.grading import grade_turns
from sftlab.lab.options import LabOptions
from sftlab.lab.samples import ABILITIES, Sample

LAB_VERSION = 3
_PATIENCE = 20_000  # samples drawn in a row without a new one before giving up
_DEFAULT = LabOptions()


class LabTurn(NamedTuple):
    """One question or answer."""

    role: str
    text: str


class LabConversation(NamedTuple):
    """Turns, and the group that a split keeps together."""

    turns: tuple[LabTurn, ...]
    group: str


class LabProblem(NamedTuple):
    """A test problem: prompts asked in turn, and what the answers are checked against (JSON-able)."""

    uid: str
    prompts: tuple[str, ...]
    reference: Any
    kind: str


def _samples(
    ability: str, num_samples: int, split: str, seed: int, exclude: Sequence[str], options: LabOptions
) -> Iterator[tuple[str, Sample]]:
    """Generate samples with an id, none asked twice; one opening prompt in eight belongs to the test split."""
    if ability not in ABILITIES:
        raise ValueError(f"data.abilities: {ability!r} has no generated data; there is {', '.join(ABILITIES)}")
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r} is neither train nor test")
    kinds = ABILITIES[ability].kinds
    if unknown := sorted(set(exclude) - set(kinds)):
        raise ValueError(f"data.abilities.{ability}.exclude: {unknown[0]!r} is not one of {', '.join(kinds)}")
    if set(kinds) <= set(exclude):
        raise ValueError(f"data.abilities.{ability}.exclude: every kind is left out")
    rng, generate = random.Random(f"{ability}/{split}/{seed}"), ABILITIES[ability].generate
    seen: set[str] = set()
    refused = 0
    while len(seen) < num_samples:
        sample = generate(rng, options)
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
    ability: str,
    num_examples: int,
    split: str = "train",
    exclude: Sequence[str] = (),
    options: LabOptions = _DEFAULT,
) -> Iterator[LabConversation]:
    """Generate distinct conversations; equal arguments give equal ones, and fewer are a prefix of more.

    Args:
        ability: math, code, general, facts or translation.
        num_examples: How many.
        split: train or test; no first prompt is in both. Only training conversations have noise.
        exclude: Kinds to leave out.
        options: The dials and the seed.

    Raises:
        ValueError: There is no such ability or split, or there are not so many different conversations.
    """
    for uid, sample in _samples(ability, num_examples, split, options.seed, exclude, options):
        answers = sample.answers
        if split == "train" and int(_digest(f"noise {uid}"), 16) < options.noise * 2**64:
            answers = _other_answers(ability, sample, options)
        turns = []
        for prompt, answer in zip(sample.prompts, answers, strict=True):
            turns += [LabTurn("user", prompt), LabTurn("assistant", answer)]
        yield LabConversation(tuple(turns), sample.prompts[0])


def _other_answers(ability: str, sample: Sample, options: LabOptions) -> tuple[str, ...]:
    """Return the answers to another prompt of the same kind; more noise keeps the already noisy ones."""
    rng = random.Random(f"noise {sample.prompts}")
    while True:
        other = ABILITIES[ability].generate(rng, options)
        alike = other.kind == sample.kind and len(other.answers) == len(sample.answers)
        if alike and not grade_turns(sample.reference, other.answers)[0]:
            return other.answers


def lab_problems(ability: str, num_problems: int, options: LabOptions = _DEFAULT) -> list[LabProblem]:
    """Generate distinct test problems; no training conversation asks the same."""
    return [
        LabProblem(uid, sample.prompts, sample.reference, sample.kind)
        for uid, sample in _samples(ability, num_problems, "test", options.seed, (), options)
    ]
