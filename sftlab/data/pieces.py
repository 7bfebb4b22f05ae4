"""Pieces: a rendered conversation as texts, each supervised or not, and what every template can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from sftlab.data.conversation import Turn


class Piece(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
        text: What is tokenised, or the name of one special token.
        supervised: Whether its tokens are trained.
        special: ``text`` names one special token, which is inserted by its id.
        exchange: Number of the exchange (a user turn and what answers it) that it belongs to.
    """

    text: str
    supervised: bool
    special: bool
    exchange: int


class Rendered(NamedTuple):
    """A conversation as a template writes it.

    Attributes:
        texts: Usually one. A template that writes an answer otherwise once a turn follows it needs several: each ends
            with an answer as it was asked for, and every trained answer is supervised in exactly one of them.
        rules: What was left out or changed, by the name that it is counted under.
    """

    texts: list[list[Piece]]
    rules: list[str]


class Template(ABC):
    """How conversations are written.

    Attributes:
        name: What a config calls it.
        end_of_turn: The special token that ends the last answer of a conversation.
        answer_prefix: What stands between the prompt and the answer's own text; it is trained with the answer.
        bos: The special token that begins a text, empty when the tokenizer adds none.
    """

    name: str
    end_of_turn: str
    answer_prefix = ""
    bos = ""

    @property
    def ends(self) -> tuple[str, ...]:
        """Every special token that ends an answer: generation stops at each."""
        return (self.end_of_turn,)

    @abstractmethod
    def rendered(self, turns: Sequence[Turn], tools: str = "") -> Rendered:
        """A conversation as pieces; supervised is each trained answer with its end of turn, and nothing else.

        Args:
            turns: The last one is an answer.
            tools: Specifications of the tools on offer, as JSON.

        Raises:
            BadRecord: The template cannot write it.
        """

    @abstractmethod
    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """The pieces before the answer to the last turn: exactly what training showed before an answer."""

    @abstractmethod
    def chat_template(self) -> str | dict[str, str]:
        """The same rendering in Jinja, for exported tokenizers; answers stand in ``generation`` marks."""

    def render(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """The first text of a conversation, the only one unless the template rewrites earlier answers."""
        return self.rendered(turns, tools).texts[0]


def is_trained(turn: Turn) -> bool:
    """Whether a turn is supervised: answers are, unless their own flag says no; nothing else ever is."""
    return turn.role == "assistant" and turn.is_trained


class Pieces:
    """Appends pieces; neighbours of one kind are joined, so that they are tokenised as one text.

    Where an answer begins and ends there is always an edge, trained or not: the same turns give the same ids.
    """

    def __init__(self) -> None:
        self.list: list[Piece] = []
        self.exchange = -1
        self._in_answer = False

    def add(self, text: str, answer: bool = False, supervised: bool = False, special: bool = False) -> None:
        """Append a text, or one special token by its name.

        Args:
            text: Empty texts are left out.
            answer: It belongs to an answer.
            supervised: It is trained.
            special: It names a special token.
        """
        exchange = max(0, self.exchange)
        if self.list and not special and answer is self._in_answer:
            before, *kind = self.list[-1]
            if kind == [supervised, False, exchange]:
                self.list[-1] = Piece(before + text, supervised, False, exchange)
                return
        if text:
            self.list.append(Piece(text, supervised, special, exchange))
            self._in_answer = answer
