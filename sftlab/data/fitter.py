"""The fitter: turns a conversation into examples, none longer than ``max_length``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sftlab.data.conversation import BadRecord, Conversation, Turn
from sftlab.data.encoder import Encoded, Encoder
from sftlab.data.pieces import Piece, Rendered

RULES = 1  # version of how conversations are fitted: raise it when other examples result
OVERLONG = ("split", "truncate", "drop")


class Fitted(NamedTuple):
    """The examples of one conversation.

    Attributes:
        uid: Uid of the conversation.
        parts: Its examples, each with the suffix of its uid.
        rules: The names of the rules that were applied to it, for counting.
        refused: Why the template cannot write it, which makes it a bad record.
    """

    uid: str
    parts: list[tuple[str, Encoded]]
    rules: list[str]
    refused: BadRecord | None = None


class Fitter:
    """Turns conversations into examples that fit. Thread-safe.

    Args:
        encoder: Tokenizer and template.
        max_length: Maximum number of tokens of an example.
        overlong: What to do with longer conversations: split, truncate or drop.
        system: A system turn for conversations that have none; empty for none.

    Raises:
        ValueError: ``overlong`` has an invalid value, or the template has no place for a system turn.
    """

    def __init__(self, encoder: Encoder, max_length: int, overlong: str, system: str = "") -> None:
        if overlong not in OVERLONG:
            raise ValueError(f"data.overlong: {overlong!r} is not one of {', '.join(OVERLONG)}")
        self.encoder, self.max_length, self.overlong = encoder, max_length, overlong
        self._head: tuple[Turn, ...] = (Turn("system", system),) if system else ()
        if self._head:
            self._check_head()

    def __getstate__(self) -> dict[str, Any]:
        """Keep what a worker needs."""
        return {**vars(self), "encoder": self.encoder.alone()}

    def _check_head(self) -> None:
        told = (
            f"data.abilities: template {self.encoder.template.name} has no place for a system prompt, such as system: "
        )
        told += repr(self._head[0].text[:60])
        try:
            texts = self.encoder.template.rendered([*self._head, Turn("user", "q"), Turn("assistant", "a")]).texts
        except BadRecord as error:
            raise ValueError(f"{told} ({error})") from None
        if not all(self._head[0].text.strip() in "".join(piece.text for piece in text) for text in texts):
            raise ValueError(told)

    def fitted(self, talks: Sequence[Conversation]) -> list[Fitted]:
        """Render, tokenise and fit conversations; uids are those of the conversations without the system prompt."""
        shown = [self._with_head(talk) for talk in talks]
        rendered = [self._rendered(talk) for talk in shown]
        texts = [text for one in rendered if isinstance(one, Rendered) for text in one.texts]
        encoded = iter(self.encoder.encode(texts))
        found = [self._fitted(talk, one, encoded) for talk, one in zip(shown, rendered, strict=True)]
        return [self._told(talk, one) for talk, one in zip(talks, found, strict=True)] if self._head else found

    def _with_head(self, talk: Conversation) -> Conversation:
        return talk if _has_system(talk) else talk._replace(turns=(*self._head, *talk.turns))

    def _told(self, talk: Conversation, found: Fitted) -> Fitted:
        own = ["kept: its own system turn, instead of the ability's"] if _has_system(talk) else []
        return found._replace(uid=talk.uid, rules=[*found.rules, *own])

    def _rendered(self, talk: Conversation) -> Rendered | BadRecord:
        """Return the texts of a conversation up to its last trained turn; none if nothing is trained."""
        turns = trained_part(talk.turns)
        rules = ["not trained: a turn by its own flag" for t in turns if t.role == "assistant" and not t.is_trained]
        rules += ["not trained: a turn that is not an answer, whatever its flag" for t in turns if _asks_in_vain(t)]
        if not turns:
            return Rendered([], ["dropped: no turn is to be trained, by their own flags"])
        if len(turns) < len(talk.turns):
            rules.append("dropped: turns after the last trained one")
        try:
            rendered = self.encoder.template.rendered(turns, talk.tools)
        except BadRecord as error:
            return error
        return Rendered(rendered.texts, [*rendered.rules, *rules])

    def _fitted(self, talk: Conversation, rendered: Rendered | BadRecord, encoded: Iterator[Encoded]) -> Fitted:
        if isinstance(rendered, BadRecord):
            return Fitted(talk.uid, [], [], rendered)
        rules = list(rendered.rules)
        texts = [next(encoded) for _ in rendered.texts]
        changed = {rule for text in zip(rendered.texts, texts, strict=True) for rule in self.encoder.changes(*text)}
        rules += sorted(changed)
        if all(len(text.ids) <= self.max_length for text in texts):
            parts = texts
        elif self.overlong == "drop":
            parts = [text for text in texts if len(text.ids) <= self.max_length]
            rules += ["dropped: longer than max_length"] * (len(texts) - len(parts))
        elif self.overlong == "truncate" or len(texts[-1].exchange_lengths) == 1:
            parts = [self._truncated(text, rules) for text in texts]
        else:
            rules.append("split: longer than max_length")
            parts = self._split(talk, rendered, texts[-1], rules)
        kept = [part for part in parts if part.supervised]
        rules += ["dropped: nothing supervised within max_length"] * (len(parts) - len(kept))
        alone = len(parts) == 1 and "split: longer than max_length" not in rules
        ends = ["" if alone else f"/{i}" for i in range(len(parts))]
        whole = [part._replace(lengths=[]) for part in parts]  # of pieces that are no longer needed
        return Fitted(talk.uid, [(end, one) for end, one in zip(ends, whole, strict=True) if one.supervised], rules)

    def _truncated(self, whole: Encoded, rules: list[str]) -> Encoded:
        if len(whole.ids) <= self.max_length:
            return whole
        rules.append("truncated: longer than max_length")
        left, runs = self.max_length, []
        for run in whole.runs:
            runs.append(min(run, left))
            left -= runs[-1]
        return Encoded(whole.ids[: self.max_length], runs, [self.max_length], [])

    def _split(self, talk: Conversation, rendered: Rendered, whole: Encoded, rules: list[str]) -> list[Encoded]:
        """Split into pieces of whole exchanges, each as long as fits; ``whole`` is the text of all of them."""
        turns = trained_part(talk.turns)
        head = [turn for turn in turns[:1] if turn.role == "system"]
        exchanges = _exchanges(turns[len(head) :])
        known = self.encoder.known(rendered.texts[-1], whole)
        lengths = whole.exchange_lengths + [0] * (len(exchanges) - len(whole.exchange_lengths))

        def texts(start: int, end: int) -> list[list[Piece]]:
            part = trained_part([*head, *(turn for exchange in exchanges[start:end] for turn in exchange)])
            return self.encoder.template.rendered(part, talk.tools).texts if part else []

        def longest(some: list[list[Piece]]) -> int:
            return max((self.encoder.length_again(text, known) for text in some), default=0)

        parts, start = [], 0
        while start < len(exchanges):
            end, alone = start + 1, texts(start, start + 1)
            part, length = alone, longest(alone)
            while end < len(exchanges) and length + lengths[end] <= self.max_length:
                length += lengths[end]
                end += 1
            while end > start + 1 and longest(part := texts(start, end)) > self.max_length:
                end -= 1
            part = part if end > start + 1 else alone
            if not part:
                rules.append("dropped: a piece of a split in which no turn is trained")
            parts += [self._truncated(self.encoder.encode_again(text, known), rules) for text in part]
            start = end
        return parts


def trained_part(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns up to the last trained one."""
    last = max((number for number, turn in enumerate(turns) if turn.is_trained), default=-1)
    return list(turns[: last + 1])


def _has_system(talk: Conversation) -> bool:
    return any(turn.role == "system" for turn in talk.turns)


def _asks_in_vain(turn: Turn) -> bool:
    return turn.role != "assistant" and bool(turn.trained)


def _exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges
