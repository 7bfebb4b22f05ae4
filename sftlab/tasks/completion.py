"""Finds the code in a model's answer. Rules have a name and a version, because scores depend on the rule.

Every extractor returns a *completion*: text such that ``prompt + completion`` is the whole program, in the sample
format of Chen et al. 2021 (arXiv 2107.03374). A complete function is one too: it redefines the prompt's unfinished one.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Sequence

from sftlab.tasks.thinking import PYTHON_TAGS, error_line, fenced_blocks, without_thinking, without_thinking_1

Extractor = Callable[[str, str, Sequence[str]], str | None]
"""(answer, prompt, names that the program must define) to completion, or None where the answer holds no code."""

FENCE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<tag>[\w.+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.M | re.S
)
CODE_START = re.compile(r"(?:import|from|def|class|async|@)\b|@")


def _blocks(answer: str) -> list[str]:
    """Return fenced blocks of Python or of no stated language, in order; the last may lack its closing fence."""
    found = FENCE.finditer(answer.replace("\r\n", "\n"))
    return [textwrap.dedent(block["code"]) for block in found if block["tag"].lower() in PYTHON_TAGS]


def _parsing_part(code: str) -> str:
    """Return the code up to where it stops being Python, without trailing prose or a truncated end."""
    lines = code.split("\n")
    while lines and (number := error_line("\n".join(lines))) is not None:
        lines = lines[: min(number - 1, len(lines) - 1)]
    return "\n".join(lines)


def _up_to_margin(body: str) -> str:
    """Return the lines before the first that starts at the left margin."""
    kept = []
    for line in body.split("\n"):
        if line[:1].strip():
            break
        kept.append(line)
    return "\n".join(kept)


def _defines(code: str, name: str) -> bool:
    return (
        re.search(rf"^(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.M) is not None
    )


def fenced(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``fenced@1``: the first fenced block (Python or unlabelled), else the whole answer, as a complete program."""
    code = next(iter(_blocks(answer)), answer)
    return f"\n{code.rstrip()}\n" if code.strip() else None


def body(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``body@1``: the answer continues the prompt, as from a base model, and ends at the left margin.

    A first line without indentation has lost it by stripping and gets four spaces.
    """
    text = answer.replace("\r\n", "\n").lstrip("\n")
    if text[:1].strip():
        text = "    " + text
    return _up_to_margin(text) if text.strip() else None


def auto(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``auto@1``: code fenced or not, a complete function or its body.

    1. The code is the first fenced block (Python or unlabelled) that defines ``names[0]``, else the first block, else,
       without fences, the whole answer.
    2. Code that defines ``names[0]`` at the left margin is a complete program. What does not parse is cut: lines before
       the first import, decorator, function or class, and everything from the first line that is not Python.
    3. Other code is a body, if the prompt opened a function: as it stands; or, unindented, indented by four spaces
       as a whole; or, where only that parses, ``body@1``.
    """
    blocks = _blocks(answer)
    chosen = next((block for block in blocks if _defines(block, names[0])), blocks[0] if blocks else answer)
    return _completed(chosen.replace("\r\n", "\n"), prompt, names)


def _completed(code: str, prompt: str, names: Sequence[str]) -> str | None:
    """Return code as a completion: rules 2 and 3 of ``auto@1``."""
    if not code.strip():
        return None
    if _defines(code, names[0]) or not prompt:
        if error_line(code) is not None:
            lines = code.split("\n")
            start = next((number for number, line in enumerate(lines) if CODE_START.match(line)), 0)
            code = _parsing_part("\n".join(lines[start:]))
        return f"\n{code.rstrip()}\n" if code.strip() else None
    code = code.lstrip("\n")
    if code[:1].strip():
        indented = textwrap.indent(code, "    ")
        if error_line(prompt + indented) is None:
            return indented
    return body(code, prompt, names)


def auto_2(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``auto@2``: like ``auto@1``, and recognises more of what chat models write.

    1. Thinking (``<think> ... </think>``) is cut first, with the drafts in it, and a speaker's name before the answer.
    2. To a block that defines ``names[0]`` come the imports, functions and classes of the other blocks that it lacks;
       what they run (examples of use) does not come.
    3. Without fences, the code begins at the first line from which on it defines ``names[0]``, whatever prose before it
       begins like code.
    4. A body in one block and its imports in another are put together.
    """
    text = _said(without_thinking_1(answer))

    def completed(block: str) -> str | None:
        return auto(f"```python\n{block}\n```", prompt, names)

    return _of_chat(text, _blocks(text), completed, prompt, names, lambda: auto(text, prompt, names))


def auto_3(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``auto@3``: like ``auto@2``, but Python's own parser decides what is code.

    1. Thinking has more marks (see ``sftlab.data.marks``); one in quotes, or in code, is a part of the answer.
    2. A block of code ends at the fence up to which it is Python: one in a docstring belongs to it.
    3. Where no block defines ``names[0]``, code without fences is looked for too.
    """
    text = _said(without_thinking(answer))
    blocks = [code for _, _, code, tag in fenced_blocks(text) if tag in PYTHON_TAGS]
    has_it = any(_defines(block, names[0]) for block in blocks)

    def completed(block: str) -> str | None:
        return _completed(block, prompt, names)

    def rest() -> str | None:
        return completed(blocks[0] if blocks else text)

    bare = None if has_it else _of_chat(text, [], completed, prompt, names, lambda: None)
    return bare or _of_chat(text, blocks, completed, prompt, names, rest)


def _said(text: str) -> str:
    """Return an answer without a speaker's name before it."""
    return _SPEAKER.sub("", text.replace("\r\n", "\n"), count=1)


def _of_chat(
    text: str,
    blocks: Sequence[str],
    completed: Callable[[str], str | None],
    prompt: str,
    names: Sequence[str],
    rest: Callable[[], str | None],
) -> str | None:
    """Apply rules 2 to 4 of ``auto@2``; if none applies, use ``rest``."""
    chosen = next((block for block in blocks if _defines(block, names[0])), None)
    if chosen is not None:
        code = completed(chosen)
        parts = [part for block in blocks if block is not chosen for part in _definitions(block, code or "")]
        return code and "\n" + "\n".join([*parts, code.strip("\n")]) + "\n"
    if not blocks:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if CODE_START.match(line):
                code = _parsing_part("\n".join(lines[number:]))
                if _defines(code, names[0]):
                    return f"\n{code.rstrip()}\n"
    imports = [block for block in blocks if _is_imports(block)]
    bodies = [block for block in blocks if not _is_imports(block)]
    if imports and bodies and prompt:
        code = completed(bodies[0])
        return code and code.rstrip("\n") + "\n\n" + "\n".join(block.strip("\n") for block in imports) + "\n"
    return rest()


_SPEAKER = re.compile(r"\A\s*(?:###[ \t]*)?(?:assistant|answer|response|solution|output)[ \t]*:[ \t]*", re.I)


def _tree(code: str) -> list[ast.stmt]:
    """Return the statements at the left margin; none if the code does not parse."""
    return ast.parse(code).body if error_line(code) is None else []


def _is_imports(code: str) -> bool:
    statements = _tree(code)
    return bool(statements) and all(isinstance(one, ast.Import | ast.ImportFrom) for one in statements)


def _definitions(block: str, code: str) -> list[str]:
    """Return imports, functions and classes of a block, except those that the code defines itself."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        part
        for one in _tree(block)
        if isinstance(one, ast.Import | ast.ImportFrom) or (isinstance(one, kinds) and not _defines(code, one.name))
        if (part := ast.get_source_segment(block, one)) is not None
    ]


EXTRACTORS: dict[str, Extractor] = {
    "auto@3": auto_3, "auto@2": auto_2, "auto@1": auto, "fenced@1": fenced, "body@1": body
}  # fmt: skip
