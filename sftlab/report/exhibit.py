"""Exhibits: a tool's findings in a form that a study's report shows: sentences, tables, pictures, perhaps a page.

FOLDER/NAME.exhibit.json   words and tables; pictures and the page are files of the same folder that it names
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sftlab.files import write_text
from sftlab.report.text import csv_text, markdown_text

Cell = str | int | float | None
ENDING = ".exhibit.json"


@dataclass(frozen=True)
class Table:
    """Rows with a header. Cells that are text are shown as they are, numbers are for the CSV alone.

    Attributes:
        name: Name of its files.
        numbers: The same rows with all digits, for the CSV; by default the shown rows.
        folded: Whether the table is collapsed until the reader opens it.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    numbers: list[dict[str, Cell]] = field(default_factory=list)
    folded: bool = False

    def as_markdown(self) -> str:
        """Return a Markdown table with its title and notes."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)
        notes = "".join(f"\n- {markdown_text(note)}" for note in self.notes) + "\n" * bool(self.notes)
        return f"**{markdown_text(self.title)}**\n\n{body}\n{notes}"

    def as_csv(self) -> str:
        """Return a CSV, with all digits if they are known."""
        return csv_of(self.numbers or [dict(zip(self.header, row, strict=True)) for row in self.rows])


@dataclass(frozen=True)
class Picture:
    """An image file with its caption."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Exhibit:
    """The findings of one tool.

    Attributes:
        title: One line.
        findings: Sentences for the top of a report.
        parts: Tables and pictures in the order shown; pictures lie in the folder that the exhibit is written to.
        page: A page of its own, in the same folder.
    """

    title: str
    findings: Sequence[str] = ()
    parts: Sequence[Table | Picture] = ()
    page: Path | None = None

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.exhibit.json."""
        parts = [
            {"file": part.path.name, "title": part.title, "caption": part.caption}
            if isinstance(part, Picture)
            else asdict(part)
            for part in self.parts
        ]
        page = self.page.name if self.page else None
        content = {"title": self.title, "findings": list(self.findings), "parts": parts, "page": page}
        write_text(folder / f"{name}{ENDING}", json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Exhibit:
        """Read an exhibit.

        Raises:
            ValueError: The file is not an exhibit, or a file that it names is missing.
        """
        mend = "run what wrote it again, or delete it"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            parts = [_part(part, path) for part in content["parts"]]
            page = path.with_name(content["page"]) if content["page"] else None
            exhibit = cls(str(content["title"]), list(map(str, content["findings"])), parts, page)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: no exhibit ({type(error).__name__}: {error}); {mend}") from None
        files = [part.path for part in parts if isinstance(part, Picture)] + ([page] if page else [])
        if missing := [file.name for file in files if not lies_in(file, path.parent)]:
            raise ValueError(f"{path}: it shows {', '.join(missing)}, which is not beside it; {mend}")
        return exhibit


def _part(content: dict[str, Any], path: Path) -> Table | Picture:
    if "file" in content:
        return Picture(path.with_name(content["file"]), str(content["title"]), str(content["caption"]))
    rows = [list(map(str, row)) for row in content["rows"]]
    header, notes = (list(map(str, content[name])) for name in ("header", "notes"))
    numbers = [{str(name): _cell(value) for name, value in row.items()} for row in content["numbers"]]
    folded = bool(content["folded"])
    table = Table(str(content["name"]), str(content["title"]), header, rows, notes, numbers, folded)
    if wrong := [row for row in rows if len(row) != len(table.header)]:
        raise ValueError(f"{table.title}: a row of {len(wrong[0])} cells under {len(table.header)} titles")
    return table


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)


def lies_in(file: Path, folder: Path) -> bool:
    """Return whether a file exists in the folder and is no link that leads outside it."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def files_in(folder: Path, ending: str = ENDING, deep: bool = False) -> list[Path]:
    """Return finished files of a folder by their ending, by default exhibits; ``deep`` includes subfolders."""
    found = (folder.rglob if deep else folder.glob)(f"*{ending}")
    seen = sorted(path for path in found if not any(n.startswith(".") for n in path.relative_to(folder).parts))
    return [path for path in seen if lies_in(path, folder)]


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as CSV: numbers are numbers, text is never a formula, nan is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_text, names))
    writer.writerows([_csv_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        return csv_text(value)
    return "" if isinstance(value, float) and math.isnan(value) else value
