"""Record files, read as streams: json, jsonl, csv and parquet, plain or compressed, and Hugging Face hub ids.

Memory is bounded by one record and a read buffer, not by the file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

RULES = 1  # version of how records are read from files: raise it when other records come out
_BLOCK = 1 << 20  # bytes read at once
_KINDS = ("json", "jsonl", "csv", "parquet")
HUB = "hub:"  # hub:<id>[:<config>[:<split>]]


def read_records(path: str) -> Iterator[Any]:
    """The records of a file or hub id, in their order.

    Args:
        path: A file whose name ends in .json (a list), .jsonl, .csv or .parquet, perhaps with .gz or .zst after it; or
            ``hub:<id>:<config>:<split>``, where config and split may be left out (``train``).

    Raises:
        ValueError: The file is missing, of another kind, broken or not UTF-8; says where.
    """
    if path.startswith(HUB):
        yield from _from_hub(path)
        return
    file = Path(path)
    kind, _ = _kind(file)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file (a hub id is written {HUB}{path})")
    if kind == "parquet":
        yield from _parquet(file)
    elif kind == "csv":
        yield from csv.DictReader(_text_lines(file))
    elif kind == "jsonl":
        yield from _json_lines(file)
    else:
        yield from _json_list(file)


def content_hash(path: str) -> str:
    """Hash of a file's bytes; of a hub id, its fingerprint there."""
    if path.startswith(HUB):
        return str(_hub_dataset(path)._fingerprint)
    digest = hashlib.blake2b(digest_size=16)
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file (a hub id is written {HUB}{path})")
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _kind(file: Path) -> tuple[str, str]:
    """What a file holds and how it is compressed, by its name."""
    suffixes = [suffix[1:].lower() for suffix in file.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in ("gz", "zst") else ""
    if not suffixes or suffixes[-1] not in _KINDS:
        raise ValueError(f"{file}: the name must end in .{', .'.join(_KINDS)}, perhaps with .gz or .zst after it")
    return suffixes[-1], packed


def _open(file: Path) -> IO[bytes]:
    _, packed = _kind(file)
    if packed == "gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    if packed == "zst":
        try:
            import zstandard
        except ImportError:
            raise ValueError(f"{file}: reading .zst files needs the extra: pip install 'sftlab[zstd]'") from None
        return zstandard.open(file, "rb")
    return file.open("rb")


def _text_blocks(file: Path) -> Iterator[str]:
    """Decoded blocks of a file; a byte order mark is passed over."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    with _open(file) as stream:
        while True:
            try:
                block = stream.read(_BLOCK)
            except (OSError, EOFError) as error:
                raise ValueError(f"{file}: cannot be unpacked after byte {position:,}: {error}") from None
            held = len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}: not UTF-8 at byte {position - held + error.start:,} ({error.object[error.start]:#04x}); "
                    "convert it, for example with iconv -t utf-8"
                ) from None
            position += len(block)
            if not block:
                return


def _text_lines(file: Path) -> Iterator[str]:
    rest = ""
    for block in _text_blocks(file):
        *lines, rest = (rest + block).split("\n")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def _json_lines(file: Path) -> Iterator[Any]:
    for number, line in enumerate(_text_lines(file), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                # One bad line is one bad record; the reader that gets it says so.
                record = BrokenRecord(f"line {number} is not JSON: {error}")
            yield record


class BrokenRecord:
    """Stands for a record that could not be parsed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _json_list(file: Path) -> Iterator[Any]:
    """Elements of a top-level list, decoded one by one from a sliding window over the file."""
    decode = json.JSONDecoder().raw_decode
    blocks = _text_blocks(file)
    text, position, done = "", 0, 0  # window, where we are in it, characters before it

    def more() -> bool:
        nonlocal text, position, done
        # As much again as is held: a long element then costs its length, not its square.
        parts, size = [text[position:]], 0
        for block in blocks:
            parts.append(block)
            size += len(block)
            if size >= max(1, len(parts[0])):
                break
        done += position
        text, position = "".join(parts), 0
        return size > 0

    def skip(characters: str) -> str:
        """Pass over white space and ``characters``; the next character, or nothing at the end."""
        nonlocal position
        while True:
            while position < len(text) and (text[position] in characters or text[position].isspace()):
                position += 1
            if position < len(text):
                return text[position]
            if not more():
                return ""

    if skip("") != "[":
        raise ValueError(f"{file}: a .json file must hold a list of records; one record per line is .jsonl")
    position += 1
    while (following := skip(",")) != "]":
        if not following:
            raise ValueError(f"{file}: the file ends at byte {_size(file):,} inside the list: truncated?")
        try:
            record, end = decode(text, position)
            complete = end < len(text) or not (isinstance(record, (int, float)) and more())
        except ValueError as error:
            if more():
                continue
            raise ValueError(
                f"{file}: the list breaks in the element at character {done + position:,}: {error}; "
                f"the file ends at byte {_size(file):,}: truncated?"
            ) from None
        if complete:
            yield record
            position = end


def _size(file: Path) -> int:
    return file.stat().st_size


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches(1024):
            yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not readable as parquet: {error}") from None


def _hub_dataset(path: str) -> Any:
    import datasets

    name, _, rest = path.removeprefix(HUB).partition(":")
    config, _, split = rest.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{path}: could not be loaded from the hub: {type(error).__name__}: {reason}") from None


def _from_hub(path: str) -> Iterator[Any]:
    yield from _hub_dataset(path)
