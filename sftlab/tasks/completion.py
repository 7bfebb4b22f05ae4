"""Finds the code in a model's answer. Rules have a name and a version: scores move with the choice, so they carry it.

Every extractor gives a *completion*: text such that ``prompt + completion`` is the whole program, in the sample format
of Chen et al. 2021 (arXiv 2107.03374). A complete function is one too: it redefines the prompt's unfinished one.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence

from sftlab.tasks.thinking import without_thinking

Extractor = Callable[[str, str, Sequence[str]], str | None]
"""(answer, prompt, names that the program must define) to completion, or None where the answer holds no code."""

FENCE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<tag>[\w.+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.M | re.S
)
PYTHON_TAGS = ("", "python", "python3", "py")
CODE_START = re.compile(r"(?:import|from|def|class|async|@)\b|@")


def _blocks(answer: str) -> list[str]:
    """Fenced blocks of Python or of no stated language, in order; a last one may lack its closing fence."""
    found = FENCE.finditer(answer.replace("\r\n", "\n"))
    return [textwrap.dedent(block["code"]) for block in found if block["tag"].lower() in PYTHON_TAGS]


def _error_line(source: str) -> int | None:
    """Number of the first line that does not parse, from 1; None when all of the source parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, RecursionError, MemoryError):
            return 1
    return None


def _parsing_part(code: str) -> str:
    """The code up to where it stops being Python: cuts prose after it and what ``max_new_tokens`` tore apart."""
    lines = code.split("\n")
    while lines and (number := _error_line("\n".join(lines))) is not None:
        lines = lines[: min(number - 1, len(lines) - 1)]
    return "\n".join(lines)


def _up_to_margin(body: str) -> str:
    """The lines before the first that starts at the left margin."""
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
    """``body@1``: the answer goes on where the prompt stops, as from a base model, and ends at the left margin.

    A first line without indentation has lost it to whoever stripped the answer and gets four spaces.
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
    code = next((block for block in blocks if _defines(block, names[0])), blocks[0] if blocks else answer)
    code = code.replace("\r\n", "\n")
    if not code.strip():
        return None
    if _defines(code, names[0]) or not prompt:
        if _error_line(code) is not None:
            lines = code.split("\n")
            start = next((number for number, line in enumerate(lines) if CODE_START.match(line)), 0)
            code = _parsing_part("\n".join(lines[start:]))
        return f"\n{code.rstrip()}\n" if code.strip() else None
    code = code.lstrip("\n")
    if code[:1].strip():
        indented = textwrap.indent(code, "    ")
        if _error_line(prompt + indented) is None:
            return indented
    return body(code, prompt, names)


def auto_2(answer: str, prompt: str, names: Sequence[str]) -> str | None:
    """``auto@2``: as ``auto@1``, and sees more of what chat models do.

    1. Thinking (``<think> ... </think>``) is cut first, with the drafts in it, and a speaker's name before the answer.
    2. To a block that defines ``names[0]`` come the imports, functions and classes of the other blocks that it lacks;
       what they run (examples of use) does not come.
    3. Without fences, the code begins at the first line from which on it defines ``names[0]``, whatever prose before it
       begins like code.
    4. A body in one block and its imports in another are put together.
    """
    text = _SPEAKER.sub("", without_thinking(answer).replace("\r\n", "\n"), count=1)
    blocks = _blocks(text)
    chosen = next((block for block in blocks if _defines(block, names[0])), None)
    if chosen is not None:
        code = auto(f"```python\n{chosen}\n```", prompt, names)
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
        code = auto(f"```python\n{bodies[0]}\n```", prompt, names)
        return code and code.rstrip("\n") + "\n\n" + "\n".join(block.strip("\n") for block in imports) + "\n"
    return auto(text, prompt, names)


_SPEAKER = re.compile(r"\A\s*(?:###[ \t]*)?(?:assistant|answer|response|solution|output)[ \t]*:[ \t]*", re.I)


def _tree(code: str) -> list[ast.stmt]:
    """Statements at the left margin; none where the code does not parse."""
    return ast.parse(code).body if _error_line(code) is None else []


def _is_imports(code: str) -> bool:
    statements = _tree(code)
    return bool(statements) and all(isinstance(one, ast.Import | ast.ImportFrom) for one in statements)


def _definitions(block: str, code: str) -> list[str]:
    """Imports, functions and classes of a block, but for those that the code defines itself."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        part
        for one in _tree(block)
        if isinstance(one, ast.Import | ast.ImportFrom) or (isinstance(one, kinds) and not _defines(code, one.name))
        if (part := ast.get_source_segment(block, one)) is not None
    ]


EXTRACTORS: dict[str, Extractor] = {"auto@1": auto, "auto@2": auto_2, "fenced@1": fenced, "body@1": body}
