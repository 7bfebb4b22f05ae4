"""Options of other tools, as listed in ``docs/coming-from.md``: their names here, for unknown keys."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from sftlab.shipped import DOCS

_NAMES = re.compile(r"`([^`]+)`")
_OF_A_PYTHON_CLASS = " of the trainer"


def called_here(option: str, value: str = "") -> str | None:
    """Return what an option of LLaMA-Factory, TRL, axolotl or Hugging Face's trainer is called here.

    Args:
        option: Its name, such as ``gradient_accumulation_steps``.
        value: Its value, which selects among several meanings of one option.

    Returns:
        The end of a sentence; None if none of the tools has such an option.
    """
    if not (rows := _options().get(option)):
        return None
    if mine := [row for row in rows if row.value and row.value == value]:
        return f"{option}: {value} of other tools is {mine[0].words}"
    if len(rows) > 1:
        which = "; ".join(f"{row.value}: {row.words}" for row in rows)
        return f"{option} of other tools is, for {which}"
    (row,) = rows
    return f"{option} of other tools is {row.words}" if row.here else f"there is no {option} {row.words}"


@dataclass(frozen=True)
class _Row:
    """One option, or one value of it.

    Attributes:
        value: The value that the row is about; empty if it is about the option.
        here: The keys here; empty if there are none.
        remark: A remark on them.
    """

    value: str
    here: str
    remark: str

    @property
    def words(self) -> str:
        """Return what it is called here."""
        why = f" ({self.remark})" if self.remark and self.here else f": {self.remark}" if self.remark else ""
        return self.remark if self.value and not self.here else f"{self.here} here{why}".lstrip()


@functools.cache
def _options() -> dict[str, list[_Row]]:
    """Return rows by the option's name: the row of the first table, or rows of its values, ``adapter: lora``."""
    found: dict[str, list[_Row]] = {}
    page = (DOCS / "coming-from.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if not line.startswith("| `") or _OF_A_PYTHON_CLASS in line:
            continue
        theirs, ours, remark = (cell.strip() for cell in line.split("|")[1:4])
        names = [name.partition(": ") for name in _NAMES.findall(theirs)]
        keys = [re.sub(r"(?<=abilities\.)math", "<name>", key) for key in _NAMES.findall(ours)]
        pairs = zip(names, keys, strict=True) if len(names) == len(keys) else ((n, " or ".join(keys)) for n in names)
        for (name, _, value), key in pairs:
            row, rows = _Row(value if value.isidentifier() else "", key, _plain(remark)), found.setdefault(name, [])
            if not rows or (row.value and all(other.value not in ("", row.value) for other in rows)):
                rows.append(row)
    return found


def _plain(remark: str) -> str:
    """Remove Markdown."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", remark).replace("`", "")
