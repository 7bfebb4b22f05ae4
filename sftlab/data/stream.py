"""Data files as streams of text: checks, decompression, decoding; each error names the file and the position.

Memory is bounded by one line and a read buffer, not by the file.
"""

from __future__ import annotations

import codecs
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = ("json", "jsonl", "csv", "parquet")
HUB = "hub:"  # hub:<id>[@<revision>][:<config>[:<split>]]
MAX_RECORD = 1 << 26  # characters of one record at most, so that a file without line breaks cannot fill the memory
_BLOCK = 1 << 20  # bytes read at once
_OTHER_KINDS = {
    b"\x1f\x8b": "is packed by gzip: its name must end in .gz",
    b"\x28\xb5\x2f\xfd": "is packed by zstd: its name must end in .zst",
    b"PAR1": "is a parquet file: its name must end in .parquet",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\xfd7zXZ": "is packed by xz: unpack it, or pack it by gzip or zstd",
    b"BZh": "is packed by bzip2: unpack it, or pack it by gzip or zstd",
    b"\xff\xfe": "is UTF-16, not UTF-8 at byte 0 (0xff): convert it, for example with iconv -f utf-16 -t utf-8",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch it, for example with git lfs pull",
    b"<!doctype html": "is a web page: what was downloaded is an answer of the server, not the data",
    b"<html": "is a web page: what was downloaded is an answer of the server, not the data",
    b"\xfe\xff": "is UTF-16, not UTF-8 at byte 0 (0xfe): convert it, for example with iconv -f utf-16 -t utf-8",
}


class BrokenRecord:
    """A record that could not be parsed.

    Attributes:
        reason: What is wrong and where, such as ``line 3 is not JSON: ...``.
        cause: What it is counted under.
    """

    def __init__(self, reason: str, cause: str = "not valid JSON") -> None:
        self.reason, self.cause = reason, cause


def regular_file(path: str, hint: str = "") -> Path:
    """Return the path of a readable file; ``hint`` is added to the message about a missing one.

    Raises:
        ValueError: It is missing, a folder or a pipe, or may not be read.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: there is no such file{hint}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: is a folder; name the files in it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is a pipe or a device; data is read more than once, so write it to a file first")
    return Path(path)


def kind_of(file: Path) -> tuple[str, str]:
    """Return what a file holds and how it is compressed (gz, zst or nothing), by its name.

    Raises:
        ValueError: It is of no kind that can be read.
    """
    suffixes = [suffix[1:].lower() for suffix in file.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in ("gz", "zst") else ""
    if not suffixes or suffixes[-1] not in KINDS:
        raise ValueError(f"{file}: the name must end in .{', .'.join(KINDS)}, perhaps with .gz or .zst after it")
    if packed and suffixes[-1] == "parquet":
        raise ValueError(f"{file}: a parquet file is packed inside; unpack it, so that its name ends in .parquet")
    return suffixes[-1], packed


def one_line(error: BaseException) -> str:
    """Return a library's message on one line, shortened."""
    return " ".join(str(error).split())[:300].rstrip(". ")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the system's errors while a file is read into one message.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None


def byte_blocks(file: Path) -> Iterator[bytes]:
    """Yield the bytes of a file as they are."""
    with reading(file), file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def _unpacked_blocks(file: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file; a truncated or damaged one is never taken for complete.

    Raises:
        ValueError: It is cut or damaged; says after which byte.
    """
    packed = kind_of(file)[1] if file.suffix.lower() in (".gz", ".zst") else ""
    if not packed:
        yield from byte_blocks(file)
        return
    size, read = 0, _reader(file, packed)
    while True:
        try:
            block = bytes(read(_BLOCK))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{file}: cannot be unpacked after byte {size:,} of what it holds ({file.stat().st_size:,} bytes "
                f"packed): {one_line(error)}. Is it cut short or damaged?"
            ) from None
        if not block:
            return
        size += len(block)
        yield block


def _reader(file: Path, packed: str) -> Callable[[int], Any]:
    """Open a compressed file, all of its members or frames."""
    if packed == "gz":
        with reading(file):
            return gzip.open(file, "rb").read
    import pyarrow as pa  # its reader detects truncated files, and continues with the next frame

    with reading(file):
        return pa.input_stream(str(file), compression="zstd").read  # type: ignore[no-any-return]


def text_blocks(file: Path) -> Iterator[str]:
    """Yield the text of a file, block by block, without a byte order mark.

    Raises:
        ValueError: The file is cut, damaged, of another kind or not UTF-8; says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    for block in _unpacked_blocks(file):
        if not position:
            check_kind(file, block)
        yield _decoded(file, decoder, block, position)
        position += len(block)
    yield _decoded(file, decoder, b"", position)


def check_kind(file: Path, start: bytes) -> None:
    """Refuse a file whose first bytes show that its content is not what its name says.

    Raises:
        ValueError: Says what it is, and what to do.
    """
    for magic, said in _OTHER_KINDS.items():
        if start[: len(magic)].lower() == magic.lower():
            raise ValueError(f"{file}: {said}")
    if start[257:262] == b"ustar":
        raise ValueError(f"{file}: is a tar archive: unpack it")
    if (position := start[:4].find(0)) >= 0:
        raise ValueError(f"{file}: no text at byte {position} (0x00): is it UTF-16, or damaged?")


def _decoded(file: Path, decoder: codecs.IncrementalDecoder, block: bytes, position: int) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 at byte {position - held + error.start:,} ({error.object[error.start]:#04x}); "
            "convert it, for example with iconv -t utf-8"
        ) from None


def text_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file without their line breaks; only a line feed breaks a line.

    Raises:
        ValueError: As for ``text_blocks``; or a line is longer than a record may be.
    """
    held: list[str] = []
    number, size = 1, 0
    for block in text_blocks(file):
        first, *lines = block.split("\n")
        held.append(first)
        size += len(first)
        if lines:
            yield "".join(held)
            yield from lines[:-1]
            held, size, number = [lines[-1]], len(lines[-1]), number + len(lines)
        if size > MAX_RECORD:
            raise ValueError(f"{file}: line {number:,} is longer than {MAX_RECORD:,} characters: is it one record?")
    if last := "".join(held):
        yield last
