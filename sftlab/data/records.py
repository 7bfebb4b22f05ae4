"""Record files, read as streams: json, jsonl, csv and parquet, plain or compressed, and Hugging Face hub ids.

Memory is bounded by one record and a read buffer, not by the file. A file that is cut short or damaged is never taken
for whole; a record that cannot be parsed is one ``BrokenRecord``. Nothing of a file or a data set is ever executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftlab.data.columns import csv_rows, parquet_rows
from sftlab.data.hub_set import HUB_ID, hub_set
from sftlab.data.json_records import json_lines, json_list
from sftlab.data.stream import HUB, BrokenRecord, byte_blocks, kind_of, regular_file
from sftlab.fingerprint import digest

__all__ = ["HUB", "RULES", "BrokenRecord", "content_hash", "read_records"]
RULES = 3  # version of how records are read (stream, json_records, columns too): raise it when other records result
_READ = {"json": json_list, "jsonl": json_lines, "csv": csv_rows, "parquet": parquet_rows}


def read_records(path: str, streaming: bool = False) -> Iterator[Any]:
    """Read the records of a file or hub data set, in order.

    Args:
        path: A file named .json (a list), .jsonl, .csv or .parquet, optionally followed by .gz or .zst; or
            ``hub:<id>[@<revision>][:<config>[:<split>]]``, whose revision (a commit or a tag) is the newest and whose
            split is ``train`` unless given.
        streaming: Read a hub data set without a download; files are always read as streams.

    Raises:
        ValueError: The file is missing, of another kind, damaged or not UTF-8; says where.
    """
    if path.startswith(HUB):
        yield from hub_set(path).rows(streaming)
        return
    file = _file(path)
    yield from _READ[kind_of(file)[0]](file)


def content_hash(path: str) -> str:
    """Hash a file's bytes and the format that they are read as; for a hub id, its commit.

    Raises:
        ValueError: It cannot be read.
    """
    if path.startswith(HUB):
        return digest(hub_set(path).key)
    file = _file(path)
    hashed = hashlib.blake2b(digest_size=16, person=".".join(kind_of(file)).encode())
    for block in byte_blocks(file):
        hashed.update(block)
    return hashed.hexdigest()


def _file(path: str) -> Path:
    hint = f" (a hub id is written {HUB}{path})" if HUB_ID.fullmatch(path) else ""
    if "://" in path:
        hint = f": download it first (a data set of the hub is written {HUB}<owner>/<name>)"
    elif path.startswith("~"):
        hint = ": ~ is not read as your home folder here, write the whole path"
    elif any(mark in path for mark in "*?["):
        hint = ": patterns are not followed, name the files"
    return regular_file(path, hint)
