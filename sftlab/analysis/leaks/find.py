"""Leaks: what training conversations share with evaluation problems, by word n-grams and by equal text.

The problems' n-grams are kept as 64-bit hashes; conversations stream past them:

    words -> numbers of the problems' own words, 0 for any other -> windows of n without a 0 -> hash -> known?
                                                                                               -> the n words compared

so that nearly all text is dismissed at the second step, and a hash that two n-grams share makes no leak.

PaLM (Chowdhery et al. 2022, arXiv 2204.02311, section 8) calls a problem contaminated when 70 % of its 8-grams are in
the training data; both numbers are our defaults. GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) takes any one
n-gram, n from 8 to 13 by the lengths of the problems, lm-evaluation-harness any 13-gram. One 8-gram alone is often a
turn of phrase.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from sftlab.analysis.leaks.problems import ProblemText
from sftlab.analysis.words import words_of
from sftlab.data.conversation import Conversation
from sftlab.data.droplist import Drop
from sftlab.report.exhibit import Exhibit, Table

DEFAULT_N = 8
MUCH = 0.7
"""Share of a problem's n-grams that makes it contaminated."""
MIN_EQUAL_WORDS = 4
"""Texts with fewer words are not compared as a whole: "Yes." is not a leak."""
TITLES = [
    "ability", "conversations", "against", "same text", f"{MUCH:.0%} shared", "any shared",
    f"problems {MUCH:.0%}", "problems any", "of",
]  # fmt: skip
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying is invertible


@dataclass(frozen=True)
class Leak:
    """The overlap of one conversation with one text of one problem.

    Attributes:
        uid: The conversation's.
        part: question or answer, of the problem.
        same: A whole turn equals the text, punctuation and case aside.
        share: Part of the text's different n-grams that the conversation has; 1 where it is the same.
        words: The longest stretch of the conversation whose every n-gram the text has, at most 60 words of it.
    """

    uid: str
    ability: str
    task: str
    problem: str
    part: str
    same: bool
    share: float
    words: str


@dataclass
class _Hits:
    """The overlap of one conversation with one problem text, while it is collected."""

    grams: set[int]
    words: list[str]
    same: bool = False


class ProblemIndex:
    """The n-grams of some problem texts.

    Args:
        problem_texts: Texts that training data must not contain.
        n: Words of an n-gram.

    Attributes:
        num_short: Problem texts of fewer than n words: they are compared as a whole only.
        num_unchecked: Problem texts of fewer than ``MIN_EQUAL_WORDS`` words: they are not compared.
    """

    def __init__(self, problem_texts: Sequence[ProblemText], n: int = DEFAULT_N) -> None:
        if n < 2:
            raise ValueError(f"--n: {n}; an n-gram has at least 2 words")
        self.problem_texts, self.n = problem_texts, n
        self._numbers: dict[str, int] = {}
        all_words = [words_of(problem_text.text) for problem_text in problem_texts]
        for words in all_words:
            for word in words:
                self._numbers.setdefault(word, len(self._numbers) + 1)
        self._mixed_V = np.random.default_rng(0).integers(1, 2**64, len(self._numbers) + 1, dtype=np.uint64)
        self._owners: dict[int, list[int]] = defaultdict(list)
        self._grams: dict[int, tuple[str, ...]] = {}
        self._whole: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.sizes: list[int] = []
        for index, words in enumerate(all_words):
            self._add(index, words)
        self._known_K = np.array(sorted(self._owners), dtype=np.uint64)
        self.num_short = sum(len(words) < n for words in all_words)
        self.num_unchecked = sum(len(words) < min(n, MIN_EQUAL_WORDS) for words in all_words)

    def _add(self, index: int, words: list[str]) -> None:
        hashes = dict.fromkeys(zip(*self._windows(words), strict=True))
        self.sizes.append(len({value for _, value in hashes}))
        for position, value in hashes:
            if index not in self._owners[value]:
                self._owners[value].append(index)
            self._grams[value] = tuple(words[position : position + self.n])
        if len(words) >= MIN_EQUAL_WORDS:
            self._whole[tuple(words)].append(index)

    def _windows(self, words: list[str]) -> tuple[list[int], list[int]]:
        """Return positions and hashes of the windows of n words that all occur in the problem texts."""
        numbers_L = np.fromiter(map(self._numbers.get, words, repeat(0)), dtype=np.int64, count=len(words))
        count = len(words) - self.n + 1
        if count < 1:
            return [], []
        strangers_L = np.concatenate([[0], np.cumsum(numbers_L == 0)])
        starts_W = np.flatnonzero(strangers_L[self.n :] == strangers_L[:count])
        if not len(starts_W):
            return [], []
        mixed_L, hashes_W = self._mixed_V[numbers_L], np.zeros(len(starts_W), dtype=np.uint64)
        for offset in range(self.n):
            hashes_W = hashes_W * _BASE + mixed_L[starts_W + offset]
        return starts_W.tolist(), hashes_W.tolist()

    def find(self, texts: Iterable[str]) -> dict[int, _Hits]:
        """Return what the turns of a conversation share with problem texts, by the problem text's position."""
        hits: dict[int, _Hits] = {}
        for text in texts:
            words = words_of(text)
            starts, hashes = self._windows(words)
            known = self._known(hashes)
            runs: dict[int, tuple[int, int]] = {}  # problem text -> first and last position of the current run
            for position, value in zip(starts, hashes, strict=True):
                if value in known and self._grams[value] == tuple(words[position : position + self.n]):
                    for index in self._owners[value]:
                        first, last = runs.get(index, (position, position))
                        runs[index] = (first if position <= last + 1 else position, position)
                        self._note(hits, index, value, words[runs[index][0] : position + self.n])
            if len(words) >= MIN_EQUAL_WORDS:
                for index in self._whole.get(tuple(words), ()):
                    hits.setdefault(index, _Hits(set(), words)).same = True
        return hits

    def _known(self, hashes: list[int]) -> set[int]:
        if not hashes or not len(self._known_K):
            return set()
        hashes_W = np.array(hashes, dtype=np.uint64)
        place_W = np.searchsorted(self._known_K, hashes_W).clip(max=len(self._known_K) - 1)
        return set(hashes_W[self._known_K[place_W] == hashes_W].tolist())

    def _note(self, hits: dict[int, _Hits], index: int, value: int, words: list[str]) -> None:
        found = hits.setdefault(index, _Hits(set(), []))
        found.grams.add(value)
        if len(words) > len(found.words):
            found.words = words


def find_leaks(talks: Iterable[tuple[str, Conversation]], ability: str, index: ProblemIndex) -> Iterator[list[Leak]]:
    """Return the leaks of each conversation, in their order; most have none."""
    for uid, talk in talks:
        leaks = []
        for number, hits in index.find(turn.text for turn in talk.turns).items():
            problem_text = index.problem_texts[number]
            share = 1.0 if hits.same else len(hits.grams) / index.sizes[number]
            words = " ".join(hits.words[:60])
            leaks.append(Leak(uid, ability, *problem_text[:3], same=hits.same, share=round(share, 4), words=words))
        yield leaks


@dataclass
class LeakCount:
    """One ability against one task: conversations by how much they share, problems that are touched.

    Attributes:
        same: Conversations with a turn that equals a text of a problem.
        much: Those with at least ``MUCH`` of the n-grams of one, or the same.
        any: Those with any n-gram.
        problems: The problems that any of them touches, each with the largest share found.
    """

    same: int = 0
    much: int = 0
    any: int = 0
    problems: dict[str, float] | None = None

    def add(self, leaks: Sequence[Leak]) -> None:
        """Count one conversation's leaks with the task."""
        self.any += 1
        self.much += any(leak.share >= MUCH for leak in leaks)
        self.same += any(leak.same for leak in leaks)
        self.problems = self.problems or {}
        for leak in leaks:
            self.problems[leak.problem] = max(leak.share, self.problems.get(leak.problem, 0.0))


class LeakReport:
    """Leaks of some abilities with some tasks, written as they come.

    Args:
        index: The problem texts.
    """

    def __init__(self, index: ProblemIndex) -> None:
        self.index = index
        self.conversations: Counter[str] = Counter()
        self.counts: dict[tuple[str, str], LeakCount] = defaultdict(LeakCount)
        self.worst: dict[str, list[Leak]] = defaultdict(list)
        self.num_problems = {
            task: len({problem_text.problem for problem_text in index.problem_texts if problem_text.task == task})
            for task in dict.fromkeys(problem_text.task for problem_text in index.problem_texts)
        }

    def add(self, ability: str, leaks: Sequence[Leak]) -> None:
        """Count one conversation."""
        self.conversations[ability] += 1
        for task in dict.fromkeys(leak.task for leak in leaks):
            mine = [leak for leak in leaks if leak.task == task]
            self.counts[ability, task].add(mine)
            ranked = sorted([*self.worst[task], *mine], key=lambda leak: (-leak.share, leak.uid, leak.problem))
            self.worst[task] = ranked[:5]

    def rows(self) -> list[tuple[str, ...]]:
        """Return ability, conversations, task; conversations same, much, any; problems much, any, all."""
        rows = []
        for ability, total in self.conversations.items():
            for task, problems in self.num_problems.items():
                count = self.counts[ability, task]
                touched = count.problems or {}
                much = sum(share >= MUCH for share in touched.values())
                numbers = (count.same, count.much, count.any, much, len(touched), problems)
                rows.append((ability, f"{total:,}", task, *(f"{number:,}" for number in numbers)))
        return rows

    def notes(self) -> list[str]:
        """Explain the columns, and what was not compared."""
        n, index = self.index.n, self.index
        notes = [
            f"same text: a turn equals a question or answer; {MUCH:.0%}, any: conversations with so many of its "
            f"{n}-grams, with any; problems: those that they touch."
        ]
        if index.num_short:
            notes.append(
                f"{index.num_short:,} of {len(index.problem_texts):,} texts of problems have fewer than {n} words and "
                f"are compared as a whole only; {index.num_unchecked:,} are too short to be compared at all."
            )
        return notes

    def worst_rows(self) -> list[list[str]]:
        """Return task, share, ability, conversation, problem, part and shared words of the worst leaks."""
        return [
            [task, "same" if leak.same else f"{leak.share:.0%}", leak.ability, leak.uid[:10], leak.problem, leak.part,
             leak.words[:150]]
            for task, leaks in self.worst.items()
            for leak in leaks
        ]  # fmt: skip

    def exhibit(self) -> Exhibit:
        """Return the exhibit for the report of a study."""
        rows = [[*row] for row in self.rows()]
        parts = [Table("overlap", f"Overlap by {self.index.n} words in a row", TITLES, rows, self.notes())]
        if worst := self.worst_rows():
            header = ["task", "shared", "ability", "conversation", "problem", "part", "words"]
            parts.append(Table("worst", "The most that is shared", header, worst, folded=True))
        findings = []
        for task, num_problems in self.num_problems.items():
            shares = [share for (_, t), c in self.counts.items() if t == task for share in (c.problems or {}).items()]
            much = {problem for problem, share in shares if share >= MUCH}
            words = f"{len(much):,} of {num_problems:,} problems of {task} share {MUCH:.0%} of their"
            findings.append(f"{words} {self.index.n}-grams with a training conversation, {len(dict(shares)):,} any.")
        return Exhibit("Evaluation problems in the training data", findings, parts)


def leak_line(leak: Leak) -> str:
    """Return a leak as a line of leaks.jsonl."""
    return json.dumps(asdict(leak), ensure_ascii=False) + "\n"


def leaks_to_drop(path: Path, min_share: float) -> list[Drop]:
    """Return the drop list of a leaks.jsonl: conversations that share at least this much with a problem."""
    drops: dict[tuple[str, str], Drop] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            leak = Leak(**json.loads(line))
            if leak.same or leak.share >= min_share:
                key = (leak.ability, leak.uid)
                drops.setdefault(key, Drop(leak.uid, f"leak: {leak.task}", leak.ability))
    return list(drops.values())
