"""``docs``: show the pages of the documentation, which come with the package, in the terminal."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sftlab.commands.options import CommandParser
from sftlab.nearest import nearest
from sftlab.screen import screen, show
from sftlab.shipped import DOCS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

PARSER = CommandParser(
    "docs",
    "Lists the pages of the documentation, or prints one: sftlab docs training.\n"
    "They are those of this version, and need no network.",
)
PARSER.add_argument("page", nargs="?", default="", metavar="PAGE", help="the page to print, such as configuration")
_TOOLS = "Programs in `tools/` are in the project's repository, not in the package: run them in a checkout."
_OBJECT = re.compile(r"^::: ([\w.]+)$", re.M)
_COMMENT = re.compile(r"^<!-- .*? -->\n", re.M)


def main(arguments: list[str]) -> int:
    """Print a page, or the list of pages."""
    if {"-h", "--help"} & set(arguments):
        PARSER.print_help()
        return 0
    name = PARSER.parse(arguments).page
    if not name:
        rows = [f"  {page:<20} {title_of(page)}" for page in pages()]
        show("Pages (sftlab docs PAGE prints one):", *rows, "")
        show("Files (sftlab docs FILE > FILE):", *(f"  {file}" for file in sorted(files())))
        return 0
    if name in files():
        sys.stdout.write(files()[name].read_text(encoding="utf-8"))
        return 0
    console, text = screen(), page_text(name)
    if console.is_terminal:
        console.print(rendered(text))
    else:
        show(text)
    return 0


def rendered(text: str) -> RenderableType:
    """Render Markdown for a terminal; names in tables are never broken, however narrow it is."""
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class WholeNames(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                for column in table.columns if isinstance(table, Table) else ():
                    column.overflow = "fold"
                yield table

    class Page(Markdown):
        elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "table_open": WholeNames}

    return Page(text)


def pages() -> list[str]:
    """Return names of all pages, such as ``training`` and ``extending/task``."""
    found = (path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
    return sorted(found, key=lambda name: (name.count("/"), name))


def files() -> dict[str, Path]:
    """Return the files that come with the manual: start scripts for clusters, examples in Python."""
    found = [*(DOCS / "clusters").iterdir(), *(DOCS.parent / "examples").glob("*.py")]
    return {path.name: path for path in found}


def title_of(page: str) -> str:
    """Return the heading of a page."""
    with (DOCS / f"{page}.md").open(encoding="utf-8") as file:
        return next((line.removeprefix("# ").strip() for line in file if line.startswith("# ")), page)


def page_text(name: str) -> str:
    """Return a page as Markdown, with the docstrings that it names.

    Raises:
        ValueError: There is no such page.
    """
    asked, known = name.removeprefix("docs/").removesuffix(".md"), pages()
    asked = asked if asked in known else next((page for page in known if page.split("/")[-1] == asked), asked)
    if asked not in known:
        near = nearest(asked, known)
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(f"docs: there is no page {name}; {hint}There are {', '.join([*known, *files()])}")
    text = (DOCS / f"{asked}.md").read_text(encoding="utf-8")
    page = _COMMENT.sub("", _OBJECT.sub(lambda match: _docstring(match[1]), text)).rstrip()
    return f"{page}\n\n{_TOOLS}" if "tools/" in text else page


def _docstring(path: str) -> str:
    """Return the docstring that the site shows for a class."""
    module, _, name = path.rpartition(".")
    text = inspect.getdoc(getattr(import_module(module), name)) or ""
    return f"### {name}\n\n```text\n{text}\n```"
