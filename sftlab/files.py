"""Files and folders that stand under their names only when they are complete, whatever kills their writer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file gets the name ``path``, in the place of an older one, unless the block raises."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it gets the name ``path``, in the place of an older one, unless the block raises."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir(parents=True)
    yield partial
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
