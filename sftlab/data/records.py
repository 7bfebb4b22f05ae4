"""Record files, read as streams: json, jsonl, csv and parquet, plain or compressed, and Hugging Face hub ids.

Memory is bounded by one record and a read buffer, not by the file. A file that is cut short or damaged is never taken
for whole; a record that cannot be parsed is one ``BrokenRecord``. Nothing of a file or a data set is ever executed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftlab.data.columns import arrow_rows, csv_rows, parquet_rows
from sftlab.data.json_records import json_lines, json_list
from sftlab.data.stream import HUB, BrokenRecord, byte_blocks, kind_of, one_line, regular_file

__all__ = ["HUB", "RULES", "BrokenRecord", "content_hash", "read_records"]
RULES = 3  # version of how records are read (stream, json_records, columns too): raise it when other records come out
_READ = {"json": json_list, "jsonl": json_lines, "csv": csv_rows, "parquet": parquet_rows}
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[^:\s]+))?(:(?P<config>[^:/]*)(:(?P<split>.*))?)?")


def read_records(path: str) -> Iterator[Any]:
    """Read the records of a file or hub data set, in order.

    Args:
        path: A file named .json (a list), .jsonl, .csv or .parquet, optionally followed by .gz or .zst; or
            ``hub:<id>[@<revision>][:<config>[:<split>]]``, whose revision (a commit or a tag) is the newest and whose
            split is ``train`` unless given.

    Raises:
        ValueError: The file is missing, of another kind, damaged or not UTF-8; says where.
    """
    if path.startswith(HUB):
        yield from _from_hub(path)
        return
    file = _file(path)
    yield from _READ[kind_of(file)[0]](file)


def content_hash(path: str) -> str:
    """Hash of a file's bytes and of the kind that they are read as; of a hub id, its fingerprint there.

    Raises:
        ValueError: It cannot be read.
    """
    if path.startswith(HUB):
        return str(_hub_dataset(path)._fingerprint)
    file = _file(path)
    digest = hashlib.blake2b(digest_size=16, person=".".join(kind_of(file)).encode())
    for block in byte_blocks(file):
        digest.update(block)
    return digest.hexdigest()


def _file(path: str) -> Path:
    hint = f" (a hub id is written {HUB}{path})" if _HUB_ID.fullmatch(path) else ""
    if "://" in path:
        hint = f": download it first (a data set of the hub is written {HUB}<owner>/<name>)"
    elif path.startswith("~"):
        hint = ": ~ is not read as your home folder here, write the whole path"
    elif any(mark in path for mark in "*?["):
        hint = ": patterns are not followed, name the files"
    return regular_file(path, hint)


@functools.lru_cache(maxsize=8)
def _hub_dataset(path: str) -> Any:
    """A data set of the hub; what is hashed is then also what is read, though the hub may move on."""
    import datasets

    asked = _HUB_ID.fullmatch(path.removeprefix(HUB))
    if asked is None:
        raise ValueError(f"{path}: a hub id is written {HUB}<owner>/<name>[@<revision>][:<config>[:<split>]]")
    if Path(asked["id"]).exists():
        raise ValueError(f"{path}: there is a folder {asked['id']} here, which would be read in place of the hub")
    try:
        return datasets.load_dataset(
            asked["id"], asked["config"] or None, split=asked["split"] or "train", revision=asked["revision"]
        )
    except Exception as error:
        offline = "; without a network, a data set must be in the local cache" if "ffline" in repr(error) else ""
        message = f"{path}: could not be loaded from the hub: {type(error).__name__}: {one_line(error)}{offline}"
        raise ValueError(message) from None


def _from_hub(path: str) -> Iterator[Any]:
    """Rows as Arrow holds them: pictures and sounds are not decoded."""
    for table in _hub_dataset(path).with_format("arrow").iter(1024):
        yield from arrow_rows(path, table)
