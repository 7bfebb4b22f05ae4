"""The built-in templates: a conversation becomes pieces by appending, never by searching.

vicuna_v1.1, two exchanges (supervised pieces underlined; `</s>` is a special token, inserted by its id):

    A chat between ... questions. USER: q1 ASSISTANT:| a1|</s>|USER: q2 ASSISTANT:| a2|</s>
                                                      --- ----                     --- ----

Text that contains a template's markers or a special token's name stays text: contents are never scanned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftlab.data.conversation import BadRecord, Turn
from sftlab.data.own_template import OwnTemplate
from sftlab.data.pieces import Piece, Pieces, Rendered, Stripping, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RULES = 3  # version of how conversations are written: raise it when other pieces result
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
WRITTEN = (VICUNA_SYSTEM, f"{ALPACA_SYSTEM}\n\n### Instruction:\n", "\n\n### Response:\n")
"""What our templates write around turns, for tokenizers that should have tokens for it."""


class WrittenTemplate(Template):
    """A template of this file: texts, system turns and tool results; no calls, no tools, no reasoning.

    Attributes:
        system_first: Whether a system turn must be the first turn.
    """

    system_first = True

    @abstractmethod
    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Return the pieces of turns that the template can write."""

    def rendered(self, turns: Sequence[Turn], tools: str = "") -> Rendered:
        """Return one text; reasoning is left out.

        Raises:
            BadRecord: A turn is of a kind that the template cannot write.
        """
        if tools:
            raise BadRecord(f"tools that template {self.name} cannot write")
        if any(turn.calls for turn in turns):
            raise BadRecord(f"tool calls that template {self.name} cannot write")
        if self.system_first and any(turn.role == "system" for turn in turns[1:]):
            raise BadRecord(f"a system turn that is not the first, which template {self.name} cannot write")
        if any(turn.reasoning and not turn.text.strip() for turn in turns):
            raise BadRecord(f"an answer of reasoning alone, which template {self.name} cannot write")
        thought = any(turn.reasoning for turn in turns)
        rules = [f"left out: reasoning that template {self.name} cannot write"] if thought else []
        return Rendered([self.pieces(turns)], rules)

    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """Return the pieces before the answer to the last turn: exactly what precedes an answer in training."""
        pieces = self.render([*turns, Turn("assistant", "x")], tools)
        while not pieces[-1].supervised:
            pieces.pop()
        while pieces[-1].supervised:
            pieces.pop()
        return pieces


class Vicuna(WrittenTemplate):
    """FastChat's vicuna_v1.1; tool turns are written as ``TOOL: text``.

    Args:
        name: vicuna_v1.1, or vicuna_short without a system text.
        tokenizer: Its end-of-sequence token ends an answer.
        system: The system text of conversations without a system turn.
    """

    answer_prefix = " "
    _names = {"user": "USER", "assistant": "ASSISTANT", "tool": "TOOL"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast, system: str) -> None:
        self.name, self.system = name, system
        self.end_of_turn, self.bos = _eos(tokenizer, name), _bos(tokenizer)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """``{system} USER: q ASSISTANT: a</s>USER: ...``, without the space where there is no system text."""
        pieces, system = Pieces(self.stripping), self.system
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        if system:
            pieces.add(f"{system} ")
        for turn in turns:
            role, text, trained = turn.role, turn.text, turn.is_trained
            pieces.exchange += role == "user"
            if role == "assistant":
                pieces.add("ASSISTANT:")
                pieces.add(f" {text}", answer=True, supervised=trained)
                pieces.add(self.end_of_turn, answer=True, supervised=trained, special=True)
            else:
                pieces.add(f"{self._names.get(role, 'USER')}: {text} ")
        return pieces.list

    def chat_template(self) -> str:
        """Return the template in Jinja."""
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


class ChatML(WrittenTemplate):
    """``<|im_start|>role``, the text, ``<|im_end|>``; the tokenizer must have both markers as special tokens."""

    name = "chatml"
    end_of_turn = "<|im_end|>"
    system_first = False

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"data.template: chatml needs the tokens {' and '.join(missing)}, which this tokenizer lacks: "
                "an answer could never be ended. Use vicuna_v1.1, alpaca or tokenizer"
            )
        self.bos = _bos(tokenizer)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Write one block per turn, with a line break after each."""
        pieces = Pieces(self.stripping)
        for turn in turns:
            role, text, trained = turn.role, turn.text, turn.is_trained
            pieces.exchange += role == "user"
            answer = role == "assistant"
            pieces.add("<|im_start|>", special=True)
            pieces.add(f"{role}\n")
            pieces.add(text, answer=answer, supervised=trained)
            pieces.add("<|im_end|>", answer=answer, supervised=trained, special=True)
            pieces.add("\n")
        return pieces.list

    def chat_template(self) -> str:
        """Return the template in Jinja."""
        return (
            ("{{ bos_token }}" if self.bos else "")
            + "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
            "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
            "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )


class Alpaca(WrittenTemplate):
    """Alpaca's instruction and response; later exchanges follow after a blank line, tool turns as ``### Tool:``."""

    name = "alpaca"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.end_of_turn, self.bos = _eos(tokenizer, self.name), _bos(tokenizer)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Write the answer directly after ``### Response:``, as GSM8K-RFT was trained."""
        pieces, system = Pieces(self.stripping), ALPACA_SYSTEM
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        pieces.add(system)
        for turn in turns:
            role, text, trained = turn.role, turn.text, turn.is_trained
            pieces.exchange += role == "user"
            if role == "assistant":
                pieces.add("\n\n### Response:")
                pieces.add(text, answer=True, supervised=trained)
                pieces.add(self.end_of_turn, answer=True, supervised=trained, special=True)
            else:
                pieces.add(f"\n\n### {'Tool' if role == 'tool' else 'Instruction'}:\n{text}")
        return pieces.list

    def chat_template(self) -> str:
        """Return the template in Jinja."""
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


TEMPLATES = ("vicuna_v1.1", "vicuna_short", "chatml", "alpaca", "tokenizer")


def get_template(name: str, tokenizer: PreTrainedTokenizerFast) -> Template:
    """Return a template by name.

    Raises:
        ValueError: There is no template of that name, or the tokenizer cannot write it.
    """
    template = _named(name, tokenizer)
    template.stripping = Stripping.of(tokenizer)
    return template


def _named(name: str, tokenizer: PreTrainedTokenizerFast) -> Template:
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


def checked_system(system: str | None) -> str:
    """Return the system prompt of an ability; empty for none.

    Raises:
        ValueError: It is given but empty.
    """
    if system is not None and not system.strip():
        raise ValueError("system: the text is empty; leave it out for no system prompt")
    return system or ""


def _eos(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    if tokenizer.eos_token is None:
        raise ValueError(f"data.template: {name} ends answers with the tokenizer's eos token, and it has none")
    return str(tokenizer.eos_token)


def _bos(tokenizer: PreTrainedTokenizerFast) -> str:
    first = tokenizer("a")["input_ids"][0]  # of an empty text it could be the end, if both are the same token
    return str(tokenizer.bos_token) if first == tokenizer.bos_token_id else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
