"""Records of tables: csv, parquet, and the Arrow data of hub data sets.

A csv row must have as many fields as the header: fewer or more are one bad record, counted with its line. A field
stands in double quotes or without them, as the csv module writes it; lines may end in LF, CRLF or CR.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.data.stream import MAX_RECORD, BrokenRecord, byte_blocks, check_kind, one_line, text_lines

if TYPE_CHECKING:
    import pyarrow as pa

_AFTER_CR = re.compile(r"(?<=\r)(?!\n)")
_ROWS = 1024  # decoded bytes of a parquet file in memory, beside a compressed row group


class _Lines:
    """Lines for the csv module that can be read again from the last mark.

    Attributes:
        number: Lines given so far.
        since: The lines given since the mark.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._again = iter(lines), []  # type: tuple[Iterator[str], list[str]]
        self.number = 0
        self.mark()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.number += 1
        self.since.append(line)
        self.size += len(line)
        if self.size > MAX_RECORD:
            raise csv.Error("too long")
        return line

    def mark(self) -> None:
        """From here on, keep lines so that they can be read again."""
        self.since: list[str] = []
        self.size = 0

    def back_to_second(self) -> None:
        """Read again all lines after the first since the mark."""
        self.number -= len(self.since) - 1
        self._again += reversed(self.since[1:])
        self.mark()


def csv_rows(file: Path) -> Iterator[Any]:
    """Yield the rows of a csv file as dictionaries; one that does not match the header is a ``BrokenRecord``.

    Raises:
        ValueError: The file cannot be read, a name occurs twice in the header, or a quote is never closed.
    """
    csv.field_size_limit(MAX_RECORD)
    lines = _Lines(part for line in text_lines(file) for part in _AFTER_CR.split(f"{line}\n") if part)
    header = _next_row(file, lines)
    if not isinstance(header, list):
        raise ValueError(f"{file}: there is no header" if header is None else f"{file}: the header: {header.reason}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{file}: the header has the column {twice[0]!r} more than once; rename one")
    while (row := _next_row(file, lines)) is not None:
        if row == header and len(header) > 1:
            number = lines.number - len(lines.since) + 1
            yield BrokenRecord(
                f"line {number:,} is the header again; were files joined?", "the header of the table again"
            )
        elif not isinstance(row, list) or len(row) == len(header):
            yield dict(zip(header, row, strict=True)) if isinstance(row, list) else row
        else:
            told = f"line {lines.number - len(lines.since) + 1:,}: {len(row)} fields, the header has {len(header)}"
            comma = "; a text with a comma stands in quotes" if len(row) > len(header) else ""
            yield BrokenRecord(told + comma, "fields do not match the header")


def _next_row(file: Path, lines: _Lines) -> list[str] | BrokenRecord | None:
    """Return the fields of the next row that is not blank; None at the end."""
    row: list[str] = []
    while not row:
        lines.mark()
        try:
            row = next(csv.reader(lines, strict=True))
        except StopIteration:
            return None
        except csv.Error as error:
            number = lines.number - len(lines.since) + 1
            if "unexpected end" in str(error) or lines.size > MAX_RECORD:
                raise ValueError(f"{file}, line {number:,}: a quote is opened and never closed") from None
            lines.back_to_second()
            return BrokenRecord(f"line {number:,} is not a row: {error}", "not a row of the table")
    return row


def parquet_rows(file: Path) -> Iterator[Any]:
    """Yield the rows of a parquet file as dictionaries.

    Raises:
        ValueError: The file is truncated, damaged or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, num_rows = file.stat().st_size, 0
    start = next(byte_blocks(file), b"")
    if not start.startswith(b"PAR1"):
        check_kind(file, start)
    try:
        about = pq.read_metadata(file)
        for group in range(about.num_row_groups):
            # Opened for each group: a reader keeps the compressed bytes of everything that it has read.
            table = pq.ParquetFile(file, metadata=about, page_checksum_verification=True)
            for batch in table.iter_batches(_ROWS, row_groups=[group]):
                num_rows += len(batch)
                yield from arrow_rows(file, batch)
        if num_rows != about.num_rows:
            raise pa.ArrowInvalid(f"it says that it has {about.num_rows:,}")
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        broken = f"not readable as parquet after row {num_rows:,} ({size:,} bytes)"
        raise ValueError(f"{file}: {broken}: {one_line(error)}. Is it cut short or damaged?") from None


def arrow_rows(name: str | Path, batch: pa.RecordBatch | pa.Table) -> Iterator[Any]:
    """Yield rows of Arrow columns; a row whose values Python cannot represent is a ``BrokenRecord``.

    Arrow gives each structure the keys of all others, as nulls; so nulls inside structures are treated as missing.

    Raises:
        ValueError: Two columns have one name.
    """
    import pyarrow as pa

    if twice := [name for name in batch.schema.names if batch.schema.names.count(name) > 1]:
        raise ValueError(f"{name}: the column {twice[0]!r} is there more than once; rename one")
    is_nested = any(pa.types.is_nested(field.type) for field in batch.schema)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, TypeError, ArithmeticError):
        rows = [_row(batch.slice(index, 1)) for index in range(len(batch))]
    for row in rows:
        is_plain = not is_nested or isinstance(row, BrokenRecord)
        yield row if is_plain else {name: _without_nulls(value) for name, value in row.items()}


def _row(one: pa.RecordBatch | pa.Table) -> Any:
    try:
        return one.to_pylist()[0]
    except (ValueError, OverflowError, TypeError, ArithmeticError) as error:
        return BrokenRecord(f"a value that cannot be read: {one_line(error)}", "a value that cannot be read")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
