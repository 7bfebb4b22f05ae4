"""Pieces: a rendered conversation as texts, each supervised or not; and the interface of templates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sftlab.data.conversation import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACES = "".join(
    map(chr, (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)


class Piece(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
        text: What is tokenised, or the name of one special token.
        supervised: Whether its tokens are trained.
        special: Whether ``text`` names one special token, which is inserted by its id.
        exchange: Number of the exchange (a user turn and its answers) that it belongs to.
    """

    text: str
    supervised: bool
    special: bool
    exchange: int


class Rendered(NamedTuple):
    """A conversation as written by a template.

    Attributes:
        texts: Usually one. A template that rewrites an answer once another turn follows it needs several: each text
            ends with an answer in its original form, and every trained answer is supervised in exactly one of them.
        rules: The names under which omissions and changes are counted.
    """

    texts: list[list[Piece]]
    rules: list[str]


class Stripping(NamedTuple):
    """Special tokens that swallow adjacent white space when the tokenizer reads a text.

    Attributes:
        before: Names of those that swallow white space before them.
        after: Names of those that swallow white space after them.
    """

    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Stripping:
        """Return those of a tokenizer; Phi-3's has some."""
        added = tokenizer.added_tokens_decoder.values()
        before, after = ({t.content for t in added if getattr(t, side)} for side in ("lstrip", "rstrip"))
        return cls(frozenset(before), frozenset(after))


class Template(ABC):
    """How conversations are written as text; subclasses define it.

    Attributes:
        name: Its name in a config.
        end_of_turn: The special token that ends the last answer of a conversation.
        answer_prefix: Text between the prompt and the answer; it is trained with the answer.
        bos: The special token that begins a text, empty when the tokenizer adds none.
        stripping: Special tokens beside which the tokenizer reads no white space.
    """

    name: str
    end_of_turn: str
    answer_prefix = ""
    bos = ""
    stripping = Stripping()

    @property
    def ends(self) -> tuple[str, ...]:
        """The special tokens that end an answer; generation stops at any of them."""
        return (self.end_of_turn,)

    @abstractmethod
    def rendered(self, turns: Sequence[Turn], tools: str = "") -> Rendered:
        """Write a conversation as pieces. Only trained answers and their end-of-turn tokens are supervised.

        Args:
            turns: The last one must be an answer.
            tools: Specifications of the available tools, as JSON.

        Raises:
            BadRecord: The template cannot write it.
        """

    @abstractmethod
    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """The pieces that precede the answer to the last turn, exactly as they do in training."""

    @abstractmethod
    def chat_template(self) -> str | dict[str, str]:
        """The template in Jinja, for exported tokenizers, with answers in ``generation`` blocks."""

    def render(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """The first text of a conversation; the only one unless the template rewrites earlier answers."""
        return self.rendered(turns, tools).texts[0]


class Pieces:
    """A list of pieces under construction; adjacent pieces of one kind are joined and tokenised as one text.

    Answers are never joined with the text around them, trained or not, so that the same turns give the same ids. White
    space that the tokenizer would not read is left out, except in answers, which stay as a model would write them.
    """

    def __init__(self, stripping: Stripping) -> None:
        self.list: list[Piece] = []
        self._stripping = stripping
        self.exchange = -1
        self._in_answer = False

    def add(self, text: str, answer: bool = False, supervised: bool = False, special: bool = False) -> None:
        """Append a text, or one special token by its name.

        Args:
            text: Empty texts are left out.
            answer: Whether it belongs to an answer.
            supervised: Whether it is trained.
            special: Whether it names a special token.
        """
        exchange = max(0, self.exchange)
        if special and text in self._stripping.before:
            self._strip_end()
        elif not (special or answer) and self.list and self.list[-1].special:
            text = text.lstrip(_SPACES) if self.list[-1].text in self._stripping.after else text
        if self.list and not special and answer is self._in_answer:
            before, *kind = self.list[-1]
            if kind == [supervised, False, exchange]:
                self.list[-1] = Piece(before + text, supervised, False, exchange)
                return
        if text:
            self.list.append(Piece(text, supervised, special, exchange))
            self._in_answer = answer

    def _strip_end(self) -> None:
        """Remove trailing white space, unless it is an answer's."""
        if self.list and not (self.list[-1].special or self._in_answer):
            last = self.list.pop()
            if text := last.text.rstrip(_SPACES):
                self.list.append(last._replace(text=text))
