"""What a mixture is made of: lengths, turns, vocabulary, duplicates within and across abilities, drops, samples.

Everything is counted over all examples that are left after drop lists, before fractions, validation included.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from sftlab.analysis.card.minhash import Pair, near_duplicates, shingles, signature
from sftlab.analysis.words import words_of
from sftlab.data.ability import PlannedData
from sftlab.data.conversation import Conversation

_NUM_SAMPLES, _NUM_WORDS, _NUM_PAIRS = 3, 14, 8
_MIN_LETTERS = 3  # smallest count of a distinctive word
MOST_EXCHANGES = 6
"""Conversations with so many exchanges or more are counted together."""


@dataclass
class AbilityCard:
    """The composition of one ability's data.

    Attributes:
        source: Where it is from and how it is read.
        lengths_N: Tokens of each example.
        supervised_N: Supervised tokens of each example.
        exchanges: Conversations by number of user turns.
        words: How often each word occurs.
        distinctive: Words that set it apart, with their z-score of log-odds against the other abilities.
        audit: Records changed or left out, by cause.
        samples: Conversations, those with the smallest uids.
        tags: Conversations by tag, where tags were given.
    """

    name: str
    source: str
    fraction: float
    lengths_N: np.ndarray
    supervised_N: np.ndarray
    audit: dict[str, int]
    num_conversations: int = 0
    num_exchanges: int = 0
    exchanges: Counter[int] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    distinctive: list[tuple[str, float]] = field(default_factory=list)
    samples: list[tuple[str, Conversation]] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)

    def add(self, uid: str, talk: Conversation, words: list[str]) -> None:
        """Count one conversation."""
        self.num_conversations += 1
        count = sum(turn.role == "user" for turn in talk.turns)
        self.num_exchanges += count
        self.exchanges[min(MOST_EXCHANGES, count)] += 1
        self.words.update(words)
        if uid not in (known for known, _ in self.samples):
            self.samples = sorted([*self.samples, (uid, talk)], key=lambda pair: pair[0])[:_NUM_SAMPLES]


@dataclass
class Duplicates:
    """Conversations that occur again, exactly or nearly, within an ability and across abilities.

    Attributes:
        same: By (ability, other): conversations of the first whose words are also those of a conversation of the
            other; within one ability, copies beyond the first.
        near: By (ability, other): conversations of the first with a near-duplicate in the other that is not the same.
        pairs: The most similar near-duplicates: similarity, then ability, uid and text of each.
    """

    same: Counter[tuple[str, str]]
    near: Counter[tuple[str, str]]
    pairs: list[tuple[float, tuple[str, str, str], tuple[str, str, str]]]


@dataclass
class Composition:
    """A mixture: its abilities, how they overlap, and how they are written.

    Attributes:
        example: One example as the model sees it: texts, and whether each is supervised.
    """

    abilities: dict[str, AbilityCard]
    duplicates: Duplicates
    template: str
    max_length: int
    example: list[tuple[str, bool]]

    def covered(self, one: str, other: str) -> float:
        """Return the share of an ability's running words that are in the other's vocabulary."""
        words, known = self.abilities[one].words, self.abilities[other].words
        return sum(count for word, count in words.items() if word in known) / max(1, words.total())

    def jaccard(self, one: str, other: str) -> float:
        """Return the number of words that both have over the number that either has."""
        first, second = self.abilities[one].words.keys(), self.abilities[other].words.keys()
        return len(first & second) / max(1, len(first | second))


class _Texts:
    """The distinct texts of all abilities: signatures and owners; a text itself is read again when needed."""

    def __init__(self) -> None:
        self.positions: dict[bytes, int] = {}
        self.signatures: list[np.ndarray] = []
        self.owners: list[Counter[str]] = []
        self.first: list[tuple[str, str]] = []

    def add(self, ability: str, uid: str, words: list[str]) -> None:
        key = text_key(words)
        if key not in self.positions:
            self.positions[key] = len(self.signatures)
            self.signatures.append(signature(shingles(words)))
            self.owners.append(Counter())
            self.first.append((ability, uid))
        self.owners[self.positions[key]][ability] += 1


def text_key(words: list[str]) -> bytes:
    """Return a key that is equal for equal words."""
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def compose(data: PlannedData, tags: Mapping[str, Mapping[str, list[str]]]) -> Composition:
    """Compute the composition, reading every ability twice: the second time for near-duplicates only.

    Args:
        data: The loaded mixture.
        tags: Tags of conversations by uid, for some abilities.

    Raises:
        ValueError: An ability declares a count and has no data.
    """
    cards, texts = {}, _Texts()
    for name, ability in data.abilities.items():
        sizes = (ability.examples.lengths_N[ability.kept_N], ability.examples.supervised_N[ability.kept_N])
        card = AbilityCard(name, str(ability.source), ability.fraction, *sizes, ability.audit_counts())
        for uid, talk in ability.conversations():
            words = words_of(_text(talk))
            card.add(uid, talk, words)
            card.tags.update(tags.get(name, {}).get(uid, ()))
            texts.add(name, uid, words)
        cards[name] = card
    for card in cards.values():
        card.distinctive = distinctive_words(card.words, [other.words for other in cards.values() if other is not card])
    return Composition(cards, _duplicates(data, texts), data.template, data.max_length, _example(data))


def _text(talk: Conversation) -> str:
    return "\n".join(turn.text for turn in talk.turns)


def _duplicates(data: PlannedData, texts: _Texts) -> Duplicates:
    shown: dict[int, str] = {}

    def shingles_of(wanted: set[int]) -> dict[int, np.ndarray]:
        sets: dict[int, np.ndarray] = {}
        for talk in _again(data) if wanted else ():
            words = words_of(_text(talk))
            position = texts.positions[text_key(words)]
            if position in wanted and position not in sets:
                sets[position], shown[position] = shingles(words), " ".join(_text(talk).split())[:400]
        return sets

    signatures_NH = np.array(texts.signatures) if texts.signatures else np.zeros((0, 1), np.uint32)
    pairs = near_duplicates(signatures_NH, shingles_of)
    same: Counter[tuple[str, str]] = Counter()
    for owners in texts.owners:
        for name, count in owners.items():
            same[name, name] += count - 1
            same.update({(name, other): count for other in owners if other != name})
    near = _near_counts(pairs, texts)
    best = [
        (pair.similarity, *((*texts.first[i], shown[i]) for i in (pair.first, pair.second))) for pair in _varied(pairs)
    ]
    return Duplicates(same, near, best)  # type: ignore[arg-type]


def _again(data: PlannedData) -> Iterator[Conversation]:
    for ability in data.abilities.values():
        for _, talk in ability.conversations():
            yield talk


def _near_counts(pairs: Iterable[Pair], texts: _Texts) -> Counter[tuple[str, str]]:
    near: Counter[tuple[str, str]] = Counter()
    beside: dict[int, set[str]] = defaultdict(set)
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            beside[one].update(texts.owners[other])
    for position, abilities in beside.items():
        for name, count in texts.owners[position].items():
            near.update({(name, other): count for other in abilities})
    return near


def _varied(pairs: list[Pair]) -> list[Pair]:
    """Return the most similar pairs, no text twice."""
    seen: set[int] = set()
    chosen: list[Pair] = []
    for pair in pairs:
        if len(chosen) < _NUM_PAIRS and not seen & {pair.first, pair.second}:
            seen |= {pair.first, pair.second}
            chosen.append(pair)
    return chosen


def distinctive_words(words: Counter[str], others: list[Counter[str]]) -> list[tuple[str, float]]:
    """Score words by the z-score of their log-odds against the other abilities, with all counts as prior.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16 to 22; the prior is scaled to 500 words.
    """
    rest: Counter[str] = Counter()
    for other in others:
        rest.update(other)
    if not rest:
        return [(word, 0.0) for word, _ in words.most_common(_NUM_WORDS)]
    everything, scores = words + rest, []
    scale = 500 / everything.total()
    mine, theirs = words.total() + 500, rest.total() + 500
    for word, count in words.items():
        if len(word) < _MIN_LETTERS or word.isdigit():
            continue
        prior = everything[word] * scale
        here, there = count + prior, rest[word] + prior
        odds = math.log(here / (mine - here)) - math.log(there / (theirs - there))
        scores.append((odds / math.sqrt(1 / here + 1 / there), word))
    return [(word, score) for score, word in sorted(scores, reverse=True)[:_NUM_WORDS]]


def _example(data: PlannedData) -> list[tuple[str, bool]]:
    """Return the first example of the first ability, run by run."""
    assert data.encoder is not None
    ability: Any = next(iter(data.abilities.values()))
    index = int(ability.pool(data.seed).index_N[0])
    ids, mask = ability.examples.ids(index), ability.examples.mask(index)
    edges = [0, *(np.flatnonzero(np.diff(mask.astype(int))) + 1).tolist(), len(ids)]
    parts = []
    for start, end in pairwise(edges):
        text = str(data.encoder.tokenizer.decode(ids[start:end].tolist()))
        parts.append((text, bool(mask[start])))
    return parts
