"""OwnTemplate: the tokenizer's own chat template, followed answer by answer.

An answer is what the template writes after the prompt, up to the token that ends it:

    asked   the turns before, and the beginning of an answer      <|im_start|>user q<|im_end|> <|im_start|>assistant
    own     the turns up to the answer, it being the last         <|im_start|>user q<|im_end|> <|im_start|>assistant a<|im_end|>
    answer  own without asked                                                                                       a<|im_end|>

A text trains an answer only if it contains both, so that what is trained follows exactly the prompt of inference.
Templates that rewrite an answer once another turn follows (by stripping its reasoning, say) give one text per answer.

Names of special tokens in contents are broken by a mark before the template sees them; unbroken ones are the template's
own. The marks are removed afterwards.
"""  # noqa: E501 - a drawing

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sftlab.data.chat_template import ChatTemplate, Refused, with_day
from sftlab.data.conversation import BadRecord, Turn
from sftlab.data.messages import THINK, Marks, MessageForm
from sftlab.data.pieces import Piece, Pieces, Rendered, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RULES = 2  # version of how chat templates are followed (pieces, messages): raise it when the pieces change
_PROBE_CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "qqcall", "arguments": '{"qqkey": "qqvalue"}'},
}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "qqtool",
        "description": "qqword",
        "parameters": {"type": "object", "properties": {"qqkey": {"type": "string", "description": "qqword"}}},
    },
}


class _Answer(NamedTuple):
    """An answer as the template writes it when it comes last.

    Attributes:
        own: The marked text up to the token that ends the answer.
        start: Where the answer begins; the text before is the prompt.
        whole: ``own`` with what follows.
        content: Where the answer's last content ends.
    """

    own: str
    start: int
    whole: str
    content: int


class OwnTemplate(Template):
    """The tokenizer's own chat template.

    Raises:
        ValueError: The tokenizer has no template, or one that cannot be followed: it drops or changes contents, or ends
            an answer without a special token.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise ValueError("data.template: this tokenizer has no chat template; use vicuna_v1.1, alpaca or chatml")
        self._source = tokenizer.chat_template
        self._chat = ChatTemplate(tokenizer)
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        self._added = _any_of(added)
        self._names = {*map(str, tokenizer.all_special_tokens), *(name for name, special in added.items() if special)}
        self._special = _any_of(self._names)
        self._form = MessageForm(self._special)
        self._has_think = set(THINK) <= set(tokenizer.get_vocab())
        self._header, self._ends = "", _any_of(())
        self._writes_calls = self._writes_tools = True
        try:
            self._probe()
        except BadRecord as error:
            raise ValueError(f"data.template: {error} (tried with a user turn and an answer)") from None

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends of the last answer, of an earlier one, and of tool calls, if they differ."""
        return self._all_ends

    def chat_template(self) -> str | dict[str, str]:
        """The tokenizer's template with the day of training, and with the beginning of an answer if it lacks one."""
        end = ""
        if self._header:
            header = json.dumps(self._header, ensure_ascii=False)
            end = "{% if add_generation_prompt %}{{ " + header + " }}{% endif %}"
        if isinstance(self._source, dict):
            return {name: with_day(source) + end for name, source in self._source.items()}
        return with_day(self._source) + end

    # What the template can do, tested with a few conversations

    def _probe(self) -> None:
        user, answer = Turn("user", "qqask"), Turn("assistant", "qqsay")
        marks = Marks.of((), "")
        asked, plain = (self._frame([user], "", marks, generation=g) for g in (True, False))
        if "qqthink" not in self._frame([user, answer._replace(reasoning="qqthink")], "", marks):
            self._form.reasoning = "inline" if self._has_think else "none"
        if asked == plain:
            self._header = self._own_header(user, plain, marks)
        own = self._own([user, answer], "", marks)
        self._check_contents([user, answer], own[0])
        self.end_of_turn = self._end_after(own[0], own[1])
        ends = {self.end_of_turn, *self._other_ends(user, answer, marks)}
        start = len(asked) + len(self._header)
        self.answer_prefix = self._special.sub("", own[0][start : own[1] - len(answer.text)])
        if self._form.reasoning == "field":  # a token that also occurs inside an answer does not end one
            thought, end = self._own([user, answer._replace(reasoning="qqthink")], "", marks)
            ends -= set(self._special.findall(thought[start:end])) - {self.end_of_turn}
        self._names |= ends
        self._special, self._ends = _any_of(self._names), _any_of(ends)
        self._form.special = self._special
        self._all_ends = tuple(sorted(ends))

    def _own_header(self, user: Turn, plain: str, marks: Marks) -> str:
        """Return what precedes an answer, for a template that leaves it to the caller."""
        answers = [
            Turn("assistant", "qqsay"),
            Turn("assistant", "rrsay"),
            Turn("assistant", "<think>\nqq\n</think>\n\nq"),
        ]
        answers += [Turn("assistant", "qqsay", reasoning="qqthink")] if self._form.reasoning == "field" else []
        rest = [self._frame([user, answer], "", marks).removeprefix(plain) for answer in answers]
        return _common_start(rest).rstrip(" ")

    def _other_ends(self, user: Turn, answer: Turn, marks: Marks) -> Iterator[str]:
        """Return the ends of an answer in the middle and of a tool call."""
        after_user = self._frame([user], "", marks, generation=True)[len(self._frame([user], "", marks)) :]
        opening = {*self._special.findall(after_user), *self._special.findall(self._header)}
        try:
            text = self._frame([user, answer, user, answer], "", marks, until=1)
        except BadRecord:
            text = ""  # a template for one exchange
        if marks.content_end in text:
            yield from {self._end_after(text, text.index(marks.content_end))} - opening
        tools = json.dumps([_PROBE_TOOL])
        self._writes_tools = self._shows("qqtool", [user], tools, marks)
        call = Turn("assistant", "", calls=json.dumps([_PROBE_CALL]))
        offered = tools if self._writes_tools else ""
        if not self._shows("qqvalue", [user, call], offered, marks):
            self._form.arguments_as_text = True
            self._writes_calls = self._shows("qqvalue", [user, call], offered, marks)
        if self._writes_calls:
            try:
                own, end = self._own([user, call], offered, marks)
            except BadRecord:  # without the called function's name
                self._writes_calls = False
                return
            try:
                more = self._frame([user, call, Turn("tool", "qqresult", name="qqcall"), answer], offered, marks)
            except BadRecord:
                more = own
            common = _common_start([own, more])
            found = self._special.findall(common, end) or self._special.findall(own, end)
            yield from set(found[-1:]) - opening

    def _shows(self, word: str, turns: Sequence[Turn], tools: str, marks: Marks) -> bool:
        try:
            return word in self._frame(turns, tools, marks)
        except BadRecord:
            return False

    def _end_after(self, text: str, position: int) -> str:
        found = self._special.search(text, position) or self._added.search(text, position)
        if not found:
            raise BadRecord("the tokenizer's chat template ends an answer without a special token")
        return found.group()

    # Texts

    def _frame(
        self,
        turns: Sequence[Turn],
        tools: str,
        marks: Marks | None,
        generation: bool = False,
        until: int | None = None,
    ) -> str:
        """Render the template; ``until`` puts a mark at the end of that turn's content."""
        messages, offered = self._form.messages(turns, marks, until), self._form.tools(tools, marks)
        try:
            return self._chat.render(messages, offered, generation) + (self._header if generation else "")
        except Refused as error:
            raise BadRecord(f"the tokenizer's chat template refuses it: {error}") from None

    def _own(self, turns: Sequence[Turn], tools: str, marks: Marks) -> tuple[str, int]:
        """Return the text up to an answer, and where its content ends."""
        text = self._frame(turns, tools, marks, until=len(turns) - 1)
        position = text.find(marks.content_end)
        if position < 0 or text.count(marks.content_end) > 1:
            raise BadRecord("the tokenizer's chat template drops, moves or repeats turns", _roles(turns))
        return text.replace(marks.content_end, ""), position

    def _answer(self, turns: Sequence[Turn], tools: str, marks: Marks) -> _Answer:
        """Return the last turn as an answer."""
        whole, content = self._own(turns, tools, marks)
        asked = self._frame(turns[:-1], tools, marks, generation=True)
        end = self._ends.search(whole, content)
        if not end:
            raise BadRecord("the tokenizer's chat template ends an answer without a special token")
        if not whole.startswith(asked) or len(asked) > content:
            raise BadRecord("the tokenizer's chat template asks for an answer otherwise than it writes one")
        return _Answer(whole[: end.start()], len(asked), whole, content)

    def rendered(self, turns: Sequence[Turn], tools: str = "") -> Rendered:
        """Return the texts that train every answer after its prompt.

        Raises:
            BadRecord: The template refuses the conversation, or drops or changes a content.
        """
        self._check_can(turns, tools)
        marks = Marks.of(turns, tools)
        answers = self._answers(turns, tools, marks)
        rules = self._left_out(turns, answers, marks)
        waiting = [number for number in answers if turns[number].is_trained] or list(answers)[-1:]
        texts: list[list[Piece]] = []
        while waiting:
            last = waiting[-1]
            text = answers[last].whole
            rules += self._check_contents(turns[: last + 1], self._checked(turns[: last + 1], tools, text, marks))
            shown = self._shown(answers, text)
            mine = {number for number in waiting if number in shown}
            trained = {number for number in mine if turns[number].is_trained}
            texts.insert(0, self._pieces(text, shown, trained, turns, marks))
            waiting = [number for number in waiting if number not in mine]
        return Rendered(texts, [*rules, *(["split: the template rewrites earlier answers"] if len(texts) > 1 else [])])

    def _answers(self, turns: Sequence[Turn], tools: str, marks: Marks, strict: bool = True) -> dict[int, _Answer]:
        """Return every answer that follows its prompt exactly; if ``strict``, each trained answer must."""
        answers = {}
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            try:
                answers[number] = self._answer(turns[: number + 1], tools, marks)
            except BadRecord:
                if strict and turn.is_trained:
                    raise
        return answers

    def _shown(self, answers: dict[int, _Answer], text: str) -> dict[int, tuple[int, int]]:
        """Find the answers that follow their prompts in a text: where each begins, and where its end token ends."""
        found = {}
        for number, answer in answers.items():
            if text.startswith(answer.own) and (end := self._ends.match(text, len(answer.own))):
                found[number] = (answer.start, end.end())
        return found

    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[Piece]:
        """Return the prompt of the next answer.

        Raises:
            BadRecord: The template refuses the conversation.
        """
        self._check_can(turns, tools)
        marks = Marks.of(turns, tools)
        asked = self._frame(turns, tools, marks, generation=True)
        shown = self._shown(self._answers(turns, tools, marks, strict=False), asked)
        return self._pieces(asked, shown, set(), turns, marks)

    def _pieces(
        self, text: str, shown: dict[int, tuple[int, int]], trained: set[int], turns: Sequence[Turn], marks: Marks
    ) -> list[Piece]:
        """Cut a marked text where answers begin and end and at every special token."""
        pieces, position = Pieces(self.stripping), 0
        asked = [self._form.broken(marks)(turn.text.strip()) for turn in turns if turn.role == "user"]
        begins = list(_positions(text, asked))
        for number, (start, end) in [*sorted(shown.items()), (-1, (len(text), len(text)))]:
            for part, answer in ((text[position:start], False), (text[start:end], True)):
                for found in filter(None, self._special.split(part)):
                    position += len(found)
                    pieces.exchange = sum(begin < position for begin in begins) - 1
                    special = bool(self._special.fullmatch(found))
                    pieces.add(found.replace(marks.broken, ""), answer, answer and number in trained, special)
        return pieces.list

    # What must not happen silently

    def _check_can(self, turns: Sequence[Turn], tools: str) -> None:
        if tools and not self._writes_tools:
            raise BadRecord("tools that the tokenizer's chat template cannot write")
        if not self._writes_calls and any(turn.calls for turn in turns):
            raise BadRecord("tool calls that the tokenizer's chat template cannot write")
        alone = any(turn.reasoning and not (turn.text.strip() or turn.calls) for turn in turns)
        if alone and self._form.reasoning == "none":
            raise BadRecord("an answer of reasoning alone, which the tokenizer's chat template cannot write")

    def _left_out(self, turns: Sequence[Turn], answers: dict[int, _Answer], marks: Marks) -> list[str]:
        """Return what became of reasoning: an answer that comes last should keep its own.

        Raises:
            BadRecord: A trained answer lacks its text.
        """
        rules = set()
        for number, answer in answers.items():
            turn, written = turns[number], answer.own[answer.start :].replace(marks.broken, "")
            if not turn.is_trained:
                continue
            rules |= _changed(turn.text, written)
            if turn.reasoning.strip() not in written:
                rules.add("left out: reasoning that the tokenizer's chat template cannot write")
            elif turn.reasoning and self._form.reasoning == "inline":
                rules.add("written into the text: reasoning that the chat template has no place for")
        return sorted(rules)

    def _checked(self, turns: Sequence[Turn], tools: str, text: str, marks: Marks) -> str:
        """Return a text without its marks, which must equal what the template writes without them."""
        clean = text.replace(marks.broken, "")
        if clean != self._frame(turns, tools, None):
            raise BadRecord("the tokenizer's chat template looks into contents", _roles(turns))
        return clean

    def _check_contents(self, turns: Sequence[Turn], text: str) -> list[str]:
        """Check that every content occurs in the text, in order; a trimmed one is counted.

        Raises:
            BadRecord: A content is missing.
        """
        said = [turn for turn in turns if turn.role != "system"]
        system = [turn.text.strip() for turn in turns if turn.role == "system"]
        contents = [turn.text.rsplit(THINK[1], 1)[-1] if turn.role == "assistant" else turn.text for turn in said]
        found = sum(1 for _ in _positions(text, [content.strip() for content in contents]))
        if found < len(contents) or any(content not in text for content in system):
            raise BadRecord("the tokenizer's chat template drops, moves or changes contents", _roles(turns))
        trimmed = any(turn.text not in text for turn in said if turn.text.strip() and THINK[1] not in turn.text)
        return ["changed by the template: contents trimmed"] if trimmed else []


def _changed(text: str, written: str) -> set[str]:
    """Return what a template did to an answer's text; it may cut the text where reasoning ends.

    Raises:
        BadRecord: Something other than the reasoning before it is missing.
    """
    if text.strip() in written:
        return set()
    before, *after = (part.strip() for part in text.split(THINK[1]))
    is_thinking = len(after) == 1 and before.startswith(THINK[0]) and before.count(THINK[0]) == 1
    parts = [part.strip() for part in before.split(THINK[0])] if after else []
    if not after or any(part not in written for part in after):
        raise BadRecord("the tokenizer's chat template drops, moves or changes contents", "an answer's text")
    if is_thinking:
        return (
            set() if parts[-1] in written else {"left out: reasoning that the tokenizer's chat template cannot write"}
        )
    if any(part not in written for part in parts):
        raise BadRecord("the tokenizer's chat template drops, moves or changes contents", "an answer's text")
    return {f"changed by the template: a text with {THINK[1]} in it is written as reasoning and an answer"}


def _roles(turns: Sequence[Turn]) -> str:
    return ", ".join(turn.role for turn in turns[:12])


def _any_of(names: Any) -> re.Pattern[str]:
    """Return a pattern that matches any of some names, the longest first."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else re.compile("((?!))")


def _common_start(texts: Sequence[str]) -> str:
    least, most = min(texts), max(texts)
    return least[: next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]


def _positions(text: str, parts: Sequence[str]) -> Iterator[int]:
    """Return where each part begins, one after another, up to the first that is missing."""
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return
        yield position
        position += len(part)
