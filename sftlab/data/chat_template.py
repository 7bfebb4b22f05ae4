"""A tokenizer's chat template: untrusted Jinja, rendered in a sandbox with bounds on time and size.

Jinja's sandbox keeps a template from running code, but not from looping forever or writing a gigabyte. Here loops,
calls, filters, operators, list literals and printed values check the clock and the size of what they are about to
build: a list with one long text a thousand times counts as what it would print. ``strftime_now`` returns a fixed day,
so that the text of a conversation depends on the conversation alone.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_SECONDS = 10.0  # of processor time per rendering
MAX_LOOKS = 3_000_000  # loop turns, calls and operators per rendering
MAX_CHARACTERS = 50_000_000  # per rendering, and per intermediate text
DAY = datetime(2024, 7, 26)  # what LLaMA 3's templates use without a clock


def prints_date(source: str) -> bool:
    """Return whether a template asks for the date."""
    return "strftime_now" in source


def with_day(source: str) -> str:
    """Return a template that always prints ``DAY``, so that a served model sees the text it was trained on."""
    if not prints_date(source) or source.startswith(_DAY_MACRO):
        return source
    # The last output keeps Jinja from taking a leading line break for the macro's.
    return f"{_DAY_MACRO}{{{{ '' }}}}{source}"


_DIRECTIVES = [f"%{sign}{letter}" for sign in ("-", "") for letter in "aAbBcdFhHIjmMpSTuwxXyY"]
_DAY_MACRO = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace({one!r},{DAY.strftime(one)!r})" for one in _DIRECTIVES)
    + " }}{% endmacro %}"
)
"""Replaces the clock of whatever renders the template."""


class Refused(Exception):
    """A template did not render a conversation; the message says why."""


class _OverBound(Exception):
    """A template exceeded a bound; this is not the fault of a record."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer with one template, or several, of which ``default`` and ``tool_use`` are used.

    Raises:
        ValueError: It is not valid Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._words = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._sources = {}
        for with_tools in (False, True):
            source = tokenizer.get_chat_template(tools=[{}] if with_tools else None)
            try:
                self._sources[with_tools] = source
                _compiled(source)
            except _OverBound as error:
                raise ValueError(f"data.template: the tokenizer's chat template {error}") from None
            except Exception as error:  # parsing untrusted text may raise anything, RecursionError included
                raise ValueError(f"data.template: the tokenizer's chat template is not valid Jinja: {error}") from None

    def render(
        self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None, generation: bool = False
    ) -> str:
        """Render messages as text, followed by the beginning of an answer if ``generation``.

        Raises:
            Refused: The template raised an error.
            ValueError: It exceeded a bound.
        """
        template = _compiled(self._sources[bool(tools)])
        _clock.start()
        said = {"messages": list(messages), "tools": tools or None, "documents": None}
        parts, length = [], 0
        try:
            for part in template.generate(**self._words, **said, add_generation_prompt=generation):
                _clock.look()
                length = _bounded(length + len(part))
                parts.append(part)
        except _OverBound as error:
            raise ValueError(f"data.template: the tokenizer's chat template {error}; use another template") from None
        except Exception as error:  # whatever an untrusted template raises counts as a refusal of these messages
            raise Refused(_reason(error)) from None
        return "".join(parts)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    said = "".join(c if c.isprintable() else " " for c in lines[0][:120])
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__} {said}".strip()


class _Clock(threading.local):
    """The bounds of this thread's rendering; operations are counted before time, so that load changes nothing."""

    looks, deadline = 0, float("inf")

    def start(self) -> None:
        self.looks, self.deadline = 0, time.thread_time() + MAX_SECONDS

    def look(self) -> None:
        self.looks += 1
        if self.looks > MAX_LOOKS or (self.looks % 64 == 0 and time.thread_time() > self.deadline):
            raise _OverBound("does not come to an end")


_clock = _Clock()


def _bounded(length: float) -> int:
    if length > MAX_CHARACTERS:
        raise _OverBound(f"builds more than {MAX_CHARACTERS:,} characters")
    return int(length)


def _size(value: Any) -> int:
    """Estimate the characters that a value would print, counting repeated parts as often as they occur."""
    if isinstance(value, str):
        return len(value)
    total, level = 1, [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, (list, tuple, dict)):
                total = _bounded(total + _EACH * len(one))
                inner += one
                inner += one.values() if isinstance(one, dict) else ()
        _bounded(total)
        _clock.looks += len(level) // 64
        if not inner:
            return total
        level = inner
    raise _OverBound(f"nests lists more than {_MAX_DEPTH} deep")


def _num_items(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 1


_MAX_DEPTH = 1000  # of nested lists
_EACH = 16  # least size of a value in a list: the cost of visiting it

_SIZED = frozenset("center ljust rjust zfill expandtabs indent wordwrap batch slice round truncate".split())
"""Calls and filters whose numeric arguments are sizes."""
_TIMES = frozenset("replace translate expandtabs indent wordwrap sum".split())
"""Calls and filters that may repeat one argument as often as another one is long."""
_SLOW = frozenset(("wordwrap", "urlize"))  # a hundred times slower than others


def _look_at(name: str, values: Sequence[Any]) -> None:
    """Before a call or a filter, check the clock and what its arguments could make it build."""
    _clock.look()
    sizes = [_size(value) for value in values]
    _bounded(sum(sizes) * (100 if name in _SLOW else 1))
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if name in _SIZED:
        _bounded(max(numbers, default=0))
    if name in _TIMES and len(values) > 1:
        one, other, *_ = sorted([*sizes, *numbers], reverse=True)
        _bounded(one * other)
    if name == "join":
        _bounded(sum(sizes) * min(sizes) if len(sizes) > 1 else 0)
    if name in ("format", "format_map"):
        form = values[0] if isinstance(values[0], str) else ""
        _bounded(MAX_CHARACTERS + 1 if _WIDE.search(form) else 0)
        _bounded((form.count("%") + form.count("{")) * sum(sizes))


_WIDE = re.compile(r"[%{][^}a-zA-Z]*(\d{7}|\*)|:[^}]*\{")  # a field millions of characters wide, or of variable width


def _checked(name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def checked(*values: Any, **named: Any) -> Any:
        if name == "join":
            values = tuple(list(value) if isinstance(value, Iterator) else value for value in values)
        _look_at(name, [*values, *named.values()])
        made = function(*values, **named)
        return _counted(made) if isinstance(made, Iterator) else made

    return checked


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    """Yield what a filter returns, up to the size that a text may have."""
    total = 0
    for value in values:
        _clock.look()
        total = _bounded(total + _EACH + _size(value))
        yield value


def _digits(number: float) -> int:
    return number.bit_length() if isinstance(number, int) else 64


class _Ticking:
    """The items of a loop, checking the clock at every turn."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            _clock.look()
            yield value

    def __len__(self) -> int:
        return len(self._values)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox that Hugging Face renders in, with bounds."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check before an operator builds something."""
        _clock.look()
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "%" and isinstance(left, str):
            _look_at("format", [left, right])
        elif numbers and operator in ("*", "**"):
            _bounded(MAX_CHARACTERS + 1 if _digits(left) * (right if operator == "**" else 1) > 1000 else 0)
        elif operator == "+":
            _bounded(_num_items(left) + _num_items(right))
        elif operator == "*":
            one, other = (value if isinstance(value, int) else _size(value) for value in (left, right))
            _bounded(one * other)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *values: Any, **named: Any) -> Any:  # type: ignore[override]
        """Check before a call."""
        owner = getattr(function, "__self__", None)
        more = [owner] if isinstance(owner, str) else []
        name = getattr(function, "__name__", "")
        if more and name == "join":
            values = tuple(list(value) if isinstance(value, Iterator) else value for value in values)
        _look_at(name, [*more, *values, *named.values()])
        return super().call(context, function, *values, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check before ``str.format``, which the sandbox wraps."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def bounded(*values: Any, **named: Any) -> str:
            _look_at("format", [value.__self__, *values, *named.values()])
            return safe(*values, **named)

        return bounded

    @staticmethod
    def concat(parts: Any) -> str:
        """Join the output of a block or macro."""
        parts = list(parts)
        _bounded(sum(map(len, parts)))
        return "".join(parts)


class _Generation(Extension):
    """``{% generation %}`` marks what is trained; here it only renders its content."""

    tags = {"generation"}  # noqa: RUF012 - never changed

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block as a scope."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise TemplateError("a chat template may not set names that begin with an underscore")
        super().__setitem__(name, value)


def _raise_exception(message: Any = "") -> None:
    raise TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    wide = indent if isinstance(indent, int) else _size(indent or "")
    _bounded(_size(value) * (1 + abs(wide) + _size(separators or "")))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _environment() -> _Bounded:
    extensions: list[Any] = [_Generation, "jinja2.ext.loopcontrols"]
    environment = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_written)
    environment.filters = {name: _checked(name, one) for name, one in environment.filters.items()}
    environment.filters |= {"tojson": _tojson, "_ticking": _Ticking, "_joined": _joined, "_written": _written}
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: DAY.strftime(_digits_bounded(form)),
        "namespace": _Namespace,
    }
    return environment


def _written(value: Any) -> Any:
    """Return a value that is printed, or a list literal, after checking its size."""
    if not isinstance(value, str):
        _size(value)
    return value


def _digits_bounded(form: str) -> str:
    _look_at("format", [form])
    return form


def _joined(values: Sequence[Any]) -> str:
    """Return the result of ``~``."""
    return _Bounded.concat(map(str, values))


@functools.cache
def _compiled(source: str) -> Any:
    environment = _environment()
    _clock.start()
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "_ticking", [], [], None, None, lineno=loop.lineno)
    _rewrite(tree)
    tree.set_environment(environment)
    return environment.from_string(tree)


def _rewrite(node: nodes.Node) -> None:
    """Replace ``~`` and list literals by filters, since Jinja has no hooks for them."""
    for name, child in list(node.iter_fields()):
        children = child if isinstance(child, list) else [child]
        for position, one in enumerate(children):
            if not isinstance(one, nodes.Node):
                continue
            _rewrite(one)
            listed: nodes.Expr
            if isinstance(one, nodes.Concat):
                listed, looking = nodes.List(one.nodes, lineno=one.lineno), "_joined"
            elif isinstance(one, nodes.Expr) and _is_written_out(one):
                listed, looking = one, "_written"
            else:
                continue
            new = nodes.Filter(listed, looking, [], [], None, None, lineno=one.lineno)
            if isinstance(child, list):
                child[position] = new
            else:
                setattr(node, name, new)


def _is_written_out(node: nodes.Node) -> bool:
    """Return whether a node builds a list, a tuple or a dictionary."""
    is_made = isinstance(node, nodes.Tuple) and node.ctx == "load"
    return is_made or isinstance(node, (nodes.List, nodes.Dict))
