"""Templates: a conversation becomes pieces of text, each supervised or not, built by appending, never by searching.

vicuna_v1.1, two exchanges (supervised pieces underlined; `</s>` is a special token, inserted by its id):

    A chat between ... questions. USER: q1 ASSISTANT:| a1|</s>|USER: q2 ASSISTANT:| a2|</s>
                                                      --- ----                     --- ----

Text that contains a template's markers or a special token's name stays text: contents are never scanned.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sftlab.data.conversation import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RULES = 1  # version of how conversations are written: raise it when other pieces come out
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


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


class Template(ABC):
    """How conversations are written.

    Attributes:
        name: What a config calls it.
        end_of_turn: The special token that ends an answer and stops generation.
        answer_prefix: What stands between the prompt and the answer's own text; it is trained with the answer.
        bos: The special token that begins a text, empty when the tokenizer adds none.
    """

    name: str
    end_of_turn: str
    answer_prefix = ""
    bos = ""

    @abstractmethod
    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """The pieces of a conversation; supervised are each assistant turn's text and its end of turn."""

    @abstractmethod
    def chat_template(self) -> str:
        """The same rendering in Jinja, for exported tokenizers; answers stand in ``generation`` marks."""

    def prompt(self, turns: Sequence[Turn]) -> list[Piece]:
        """The pieces before the answer to the last turn: exactly what training showed before an answer."""
        pieces = self.render([*turns, Turn("assistant", "x")])
        while not pieces[-1].supervised:
            pieces.pop()
        while pieces[-1].supervised:
            pieces.pop()
        return pieces


class _Pieces:
    """Appends pieces; neighbours of one kind are joined, so that they are tokenised as one text."""

    def __init__(self) -> None:
        self.list: list[Piece] = []
        self.exchange = -1

    def add(self, text: str, supervised: bool = False, special: bool = False) -> None:
        exchange = self.exchange if self.exchange > 0 else 0
        if self.list and not special:
            before, *kind = self.list[-1]
            if kind == [supervised, False, exchange]:
                self.list[-1] = Piece(before + text, supervised, False, exchange)
                return
        if text:
            self.list.append(Piece(text, supervised, special, exchange))


class Vicuna(Template):
    """FastChat's vicuna_v1.1; tool turns are written as ``TOOL: text``.

    Args:
        name: vicuna_v1.1, or vicuna_short without a system text.
        tokenizer: Its end-of-sequence token ends an answer.
        system: Stands first unless the conversation has a system turn.
    """

    answer_prefix = " "
    _names = {"user": "USER", "assistant": "ASSISTANT", "tool": "TOOL"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast, system: str) -> None:
        self.name, self.system = name, system
        self.end_of_turn, self.bos = _eos(tokenizer, name), _bos(tokenizer)

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """``{system} USER: q ASSISTANT: a</s>USER: ...``, without the space where there is no system text."""
        pieces, system = _Pieces(), self.system
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        if system:
            pieces.add(f"{system} ")
        for role, text, *_ in turns:
            pieces.exchange += role == "user"
            if role == "assistant":
                pieces.add("ASSISTANT:")
                pieces.add(f" {text}", supervised=True)
                pieces.add(self.end_of_turn, supervised=True, special=True)
            else:
                pieces.add(f"{self._names.get(role, 'USER')}: {text} ")
        return pieces.list

    def chat_template(self) -> str:
        """In Jinja."""
        default = f"{{{{ {_quoted(self.system + ' ')} }}}}" if self.system else ""
        return ("{{ bos_token }}" if self.bos else "") + (
            "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}"
            + default
            + "{% endif %}"
            "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
            "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
            "{% elif message['role'] == 'tool' %}{{ 'TOOL: ' + message['content'] + ' ' }}"
            "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
        )


class ChatML(Template):
    """``<|im_start|>role``, the text, ``<|im_end|>``; the tokenizer must have both markers as special tokens."""

    name = "chatml"
    end_of_turn = "<|im_end|>"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"data.template: chatml needs the tokens {' and '.join(missing)}, which this tokenizer lacks: "
                "an answer could never be ended. Use vicuna_v1.1, alpaca or tokenizer"
            )
        self.bos = _bos(tokenizer)

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """One block per turn, a line break after each."""
        pieces = _Pieces()
        for role, text, *_ in turns:
            pieces.exchange += role == "user"
            trained = role == "assistant"
            pieces.add("<|im_start|>", special=True)
            pieces.add(f"{role}\n")
            pieces.add(text, supervised=trained)
            pieces.add("<|im_end|>", supervised=trained, special=True)
            pieces.add("\n")
        return pieces.list

    def chat_template(self) -> str:
        """In Jinja."""
        return (
            ("{{ bos_token }}" if self.bos else "")
            + "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
            "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
            "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )


class Alpaca(Template):
    """Alpaca's instruction and response; later exchanges follow after a blank line, tool turns as ``### Tool:``."""

    name = "alpaca"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.end_of_turn, self.bos = _eos(tokenizer, self.name), _bos(tokenizer)

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """The answer follows ``### Response:`` at once, as GSM8K-RFT was trained."""
        pieces, system = _Pieces(), ALPACA_SYSTEM
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        pieces.add(system)
        for role, text, *_ in turns:
            pieces.exchange += role == "user"
            if role == "assistant":
                pieces.add("\n\n### Response:")
                pieces.add(text, supervised=True)
                pieces.add(self.end_of_turn, supervised=True, special=True)
            else:
                pieces.add(f"\n\n### {'Tool' if role == 'tool' else 'Instruction'}:\n{text}")
        return pieces.list

    def chat_template(self) -> str:
        """In Jinja."""
        return (
            ("{{ bos_token }}" if self.bos else "")
            + "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
            f"{{{{ {_quoted(ALPACA_SYSTEM)} }}}}{{% endif %}}"
            "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '\\n\\n### Response:' }}"
            "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
            "{% elif message['role'] == 'tool' %}{{ '\\n\\n### Tool:\\n' + message['content'] }}"
            "{% elif message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' + message['content'] }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\n### Response:' }}{% endif %}"
        )


class OwnTemplate(Template):
    """The tokenizer's own chat template.

    Contents are rendered as placeholders and put back afterwards, so that what belongs to the template and what to a
    content is known. Templates that change contents other than by trimming them, or that do not end an answer with a
    special token, are refused.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise ValueError("data.template: this tokenizer has no chat template; use vicuna_v1.1, alpaca or chatml")
        self._tokenizer = tokenizer
        special = sorted(map(re.escape, {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}), reverse=True)
        self._special = re.compile("(" + "|".join(special) + ")") if special else re.compile("(?!)")
        last = self.render([Turn("user", "a"), Turn("assistant", "b")])
        self.end_of_turn = next(piece.text for piece in reversed(last) if piece.supervised)

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """The template's own text with the contents in their places.

        Raises:
            ValueError: The template cannot be followed.
        """
        marks = [f"\ue000{number}\ue001" for number in range(len(turns))]
        frame = self._apply([Turn(turn.role, mark) for turn, mark in zip(turns, marks, strict=True)])
        parts = re.split("\ue000(\\d+)\ue001", frame)
        if [int(number) for number in parts[1::2]] != list(range(len(turns))):
            raise ValueError(f"data.template: the tokenizer's chat template drops or moves turns: {self._roles(turns)}")
        for contents in ([t.text for t in turns], [t.text.strip() for t in turns]):
            if frame_filled(parts, contents) == self._apply(turns):
                return self._pieces(parts, contents, turns)
        raise ValueError("data.template: the tokenizer's chat template changes contents; use another template")

    def _apply(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:
            reason = f"on turns {self._roles(turns)}: {type(error).__name__}: {error}"
            raise ValueError(f"data.template: the tokenizer's chat template fails {reason}") from None

    @staticmethod
    def _roles(turns: Sequence[Turn]) -> str:
        return ", ".join(turn.role for turn in turns)

    def _pieces(self, parts: list[str], contents: list[str], turns: Sequence[Turn]) -> list[Piece]:
        pieces, ending = _Pieces(), False
        for position, part in enumerate(parts):
            if position % 2:
                turn = turns[int(part)]
                pieces.exchange += turn.role == "user"
                ending = turn.role == "assistant"
                pieces.add(contents[int(part)], supervised=ending)
                continue
            for text in filter(None, self._special.split(part)):
                special = bool(self._special.fullmatch(text))
                pieces.add(text, supervised=ending, special=special)
                ending = ending and not special
            if ending:
                raise ValueError("data.template: the tokenizer's chat template ends an answer without a special token")
        return pieces.list

    def chat_template(self) -> str:
        """As the tokenizer has it."""
        return str(self._tokenizer.chat_template)


def frame_filled(parts: Sequence[str], contents: Sequence[str]) -> str:
    """A rendered frame, split at its placeholders, with contents in their places."""
    return "".join(contents[int(part)] if position % 2 else part for position, part in enumerate(parts))


TEMPLATES = ("vicuna_v1.1", "vicuna_short", "chatml", "alpaca", "tokenizer")


def get_template(name: str, tokenizer: PreTrainedTokenizerFast) -> Template:
    """A template by name.

    Raises:
        ValueError: There is none of that name, or the tokenizer cannot write it.
    """
    if name == "vicuna_v1.1":
        return Vicuna(name, tokenizer, VICUNA_SYSTEM)
    if name == "vicuna_short":
        return Vicuna(name, tokenizer, "")
    if name == "chatml":
        return ChatML(tokenizer)
    if name == "alpaca":
        return Alpaca(tokenizer)
    if name == "tokenizer":
        return OwnTemplate(tokenizer)
    raise ValueError(f"data.template: {name!r} is not one of {', '.join(TEMPLATES)}")


def _eos(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    if tokenizer.eos_token is None:
        raise ValueError(f"data.template: {name} ends answers with the tokenizer's eos token, and it has none")
    return str(tokenizer.eos_token)


def _bos(tokenizer: PreTrainedTokenizerFast) -> str:
    first = tokenizer("")["input_ids"][:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
