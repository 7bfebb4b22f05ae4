"""Tags of conversations: a tagger tags user turns, tags are collected by conversation, a pattern says what to drop.

InsTag (Lu et al. 2023, arXiv 2308.07074) tags the intentions of a query; arXiv 2310.05492 drops from its general data
what has a tag with the word code or math in it. Whether every user turn is tagged or only the first it does not say.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from sftlab.analysis.tags.rules import Found
from sftlab.data.conversation import Conversation
from sftlab.data.droplist import Drop
from sftlab.files import whole_file
from sftlab.report.exhibit import Exhibit, Table

TURNS = ("all", "first")
DROPPED_TAGS = "code|math"
"""The paper's pattern; matched anywhere in a tag, upper and lower case alike."""
_CHUNK = 256  # conversations whose queries are tagged together
_SAMPLES = 4
TELL_EVERY = 1000  # conversations


class Tagger(Protocol):
    """Something that tags queries.

    Attributes:
        name: Name and version, written beside every tag.
    """

    name: str

    def tag(self, queries: Sequence[str]) -> list[list[Found] | None]:
        """Return the tags of each query; None if there was no answer or it could not be read."""

    def notes(self) -> list[str]:
        """Return what a user should know about the tagging so far."""


@dataclass(frozen=True)
class Tagged:
    """A conversation with its tags.

    Attributes:
        uid: The conversation's.
        queries: The user turns that were tagged.
        found: What was found in each of them; None where the tagger's answer could not be read.
    """

    uid: str
    queries: tuple[str, ...]
    found: tuple[list[Found] | None, ...]

    @property
    def tags(self) -> list[str]:
        """Return all its tags, each once, in the order of the turns."""
        return list(dict.fromkeys(one.tag for turn in self.found for one in turn or ()))

    @property
    def num_unread(self) -> int:
        """Return the number of queries without readable tags."""
        return sum(turn is None for turn in self.found)

    def row(self, tagger: str) -> dict[str, object]:
        """Return a line of tags.jsonl."""
        explained = [
            {"turn": number, "tag": one.tag, "explanation": one.explanation}
            for number, turn in enumerate(self.found, 1)
            for one in turn or ()
        ]
        about = {"num_turns": len(self.found), "num_unread": self.num_unread, "tagger": tagger}
        return {"uid": self.uid, "tags": self.tags, "explanations": explained, **about}


def queries_of(talk: Conversation, turns: str) -> tuple[str, ...]:
    """Return the user turns of a conversation, or only the first."""
    queries = [turn.text for turn in talk.turns if turn.role == "user"]
    return tuple(queries[:1] if turns == "first" else queries)


def tag_conversations(
    talks: Iterable[tuple[str, Conversation]], tagger: Tagger, turns: str = "all"
) -> Iterator[Tagged]:
    """Tag conversations in their order; equal queries close to each other are tagged once."""
    waiting = iter(talks)
    while chunk := [(uid, queries_of(talk, turns)) for uid, talk in islice(waiting, _CHUNK)]:
        unique = list(dict.fromkeys(query for _, queries in chunk for query in queries))
        found = dict(zip(unique, tagger.tag(unique), strict=True))
        for uid, queries in chunk:
            yield Tagged(uid, queries, tuple(found[query] for query in queries))


def reason_to_drop(tags: Iterable[str], pattern: re.Pattern[str]) -> str:
    """Return ``tag: code`` if a tag matches; empty if none does. The match is named, not the whole tag."""
    words = {match[0].lower() for tag in tags if (match := pattern.search(tag))}
    return f"tag: {', '.join(sorted(words))}" if words else ""


def tag_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern over tags, ignoring case.

    Raises:
        ValueError: It is not a regular expression, or matches every tag.
    """
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--drop: {text!r} is not a regular expression: {error}") from None
    if pattern.search(""):
        raise ValueError(f"--drop: {text!r} matches every tag, the whole ability would be dropped")
    return pattern


@dataclass
class TagReport:
    """What was tagged, and what a pattern drops: counts of conversations, and samples.

    Attributes:
        pattern: What is dropped; None drops nothing.
        drops: The drop list, one line for a conversation however often it is there.
        by_tag: Conversations by tag.
        dropped: Conversations by the reason that drops them.
    """

    ability: str
    tagger: str
    turns: str
    pattern: re.Pattern[str] | None
    num_conversations: int = 0
    num_queries: int = 0
    num_unread: int = 0
    by_tag: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    drops: dict[str, Drop] = field(default_factory=dict)
    samples: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, tagged: Tagged) -> None:
        """Count one conversation."""
        tags = tagged.tags
        self.num_conversations += 1
        self.num_queries += len(tagged.queries)
        self.num_unread += tagged.num_unread
        self.by_tag.update(tags)
        reason = reason_to_drop(tags, self.pattern) if self.pattern else ""
        if reason:
            self.dropped[reason] += 1
            self.drops.setdefault(tagged.uid, Drop(tagged.uid, reason, self.ability))
        self._sample(f"dropped, {reason}" if reason else "kept", tagged)

    def _sample(self, name: str, tagged: Tagged) -> None:
        """Keep the samples with the smallest uids, so that they depend on content only."""
        kept, text = self.samples[name], " ".join(" / ".join(tagged.queries).split())[:160]
        if text in kept.values():
            return
        kept[tagged.uid] = text
        if len(kept) > _SAMPLES:
            del kept[max(kept)]

    @property
    def num_dropped(self) -> int:
        """Number of conversations that the pattern drops."""
        return self.dropped.total()

    def summary(self) -> list[str]:
        """Return what was tagged, kept and dropped, one sentence each."""
        lines = [
            f"{self.num_conversations:,} conversations of {self.ability}, {self.num_queries:,} user turns "
            f"({'every one' if self.turns == 'all' else 'the first of each'}), tagged by {self.tagger}.",
        ]
        if self.num_unread:
            lines.append(f"{self.num_unread:,} turns have no readable tags; that alone drops no conversation.")
        if self.pattern:
            kept = self.num_conversations - self.num_dropped
            lines.append(
                f"/{self.pattern.pattern}/ (case ignored): {kept:,} kept, {self.num_dropped:,} dropped "
                f"({self.num_dropped / max(1, self.num_conversations):.1%})."
            )
        return lines

    def tag_rows(self, most: int = 40) -> list[tuple[str, str, str, str]]:
        """Return tag, conversations, share of all, and whether the pattern matches; the most frequent first."""
        return [
            (tag, f"{count:,}", f"{count / self.num_conversations:.1%}", self._fate(tag))
            for tag, count in self.by_tag.most_common(most)
        ]

    def _fate(self, tag: str) -> str:
        return "dropped" if self.pattern and self.pattern.search(tag) else ""

    def exhibit(self, notes: Sequence[str] = ()) -> Exhibit:
        """Return the exhibit for the report of a study."""
        rows, header = [list(row) for row in self.tag_rows()], ["tag", "conversations", "share", "matched"]
        parts = [Table("tags", f"Tags of {self.ability}", header, rows, self._rarer(len(rows)))]
        if self.dropped:
            counts = [[reason, f"{count:,}"] for reason, count in self.dropped.most_common()]
            parts.append(Table("dropped", "On the drop list", ["reason", "conversations"], counts))
        samples = [[name, uid[:10], text] for name in sorted(self.samples) for uid, text in self._sorted_samples(name)]
        parts.append(Table("samples", "Samples", ["fate", "conversation", "user turns"], samples, folded=True))
        return Exhibit(f"Tags of {self.ability}", [*self.summary(), *notes], parts)

    def _rarer(self, shown: int) -> list[str]:
        rarer = len(self.by_tag) - shown
        return [f"And {rarer:,} rarer tags; tags.jsonl has all."] if rarer > 0 else []

    def _sorted_samples(self, name: str) -> list[tuple[str, str]]:
        return sorted(self.samples[name].items())

    def markdown(self, notes: Sequence[str] = ()) -> str:
        """Return the whole report."""
        lines = [f"# Tags of {self.ability}", "", *self.summary(), *notes, ""]
        lines += ["| tag | conversations | share | |", "|---|---:|---:|---|"]
        lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in self.tag_rows()]
        lines += [line for note in self._rarer(40) for line in ("", note)]
        if self.dropped:
            lines += ["", "| dropped for | conversations |", "|---|---:|"]
            lines += [f"| {_cell(reason)} | {count:,} |" for reason, count in self.dropped.most_common()]
        for name in sorted(self.samples):
            lines += ["", f"## {name}: samples", ""]
            lines += [f"- `{uid}` {_cell(text)}" for uid, text in self._sorted_samples(name)]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def write_tags(
    path: Path, tagged: Iterable[Tagged], report: TagReport, tell: Callable[[int], None] | None = None
) -> None:
    """Write tags.jsonl, one line per distinct conversation, and count all in the report, atomically."""
    seen = set()
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for one in tagged:
            report.add(one)
            if one.uid not in seen:
                seen.add(one.uid)
                file.write(json.dumps(one.row(report.tagger), ensure_ascii=False) + "\n")
            if tell is not None and report.num_conversations % TELL_EVERY == 0:
                tell(report.num_conversations)
