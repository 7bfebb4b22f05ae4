"""Options of other tools, as ``docs/coming-from.md`` has them: what an unknown key is called here."""

from __future__ import annotations

import functools
import re

from sftlab.shipped import DOCS

_NAMES = re.compile(r"`([^`]+)`")
_OF_A_PYTHON_CLASS = " of the trainer"


def called_here(option: str) -> str | None:
    """What an option of LLaMA-Factory, TRL, axolotl or Hugging Face's trainer is here, as the end of a sentence.

    Args:
        option: Its name, such as ``gradient_accumulation_steps``.

    Returns:
        None where none of them has such an option.
    """
    if (found := _options().get(option)) is None:
        return None
    here, remark = found
    why = f" ({remark})" if remark and here else f": {remark}" if remark else ""
    return f"{option} of other tools is {here} here{why}" if here else f"there is no {option} here{why}"


@functools.cache
def _options() -> dict[str, tuple[str, str]]:
    """The keys here (empty where there are none) and the remark, by the name elsewhere; of several tables the first."""
    found: dict[str, tuple[str, str]] = {}
    page = (DOCS / "coming-from.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if not line.startswith("| `") or _OF_A_PYTHON_CLASS in line:
            continue
        theirs, ours, remark = (cell.strip() for cell in line.split("|")[1:4])
        names = [name.partition(":")[0] for name in _NAMES.findall(theirs)]
        keys = [re.sub(r"(?<=abilities\.)math", "<name>", key) for key in _NAMES.findall(ours)]
        pairs = zip(names, keys, strict=True) if len(names) == len(keys) else ((n, " or ".join(keys)) for n in names)
        for name, key in pairs:
            found.setdefault(name, (key, _plain(remark)))
    return found


def _plain(remark: str) -> str:
    """Without the marks of Markdown."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", remark).replace("`", "")
