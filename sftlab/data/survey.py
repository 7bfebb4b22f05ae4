"""A survey of a data file: its content, the reader that fits, and what it seems to teach. Large files are sampled.

data/gsm8k/train.jsonl   7,473 records   question, answer            MathReader   math
chats.parquet            about 90,000    conversations, id           ShareGPTReader   general
scores.csv               1,000           model, value                no reader fits
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sftlab.data.conversation import BadRecord, Conversation
from sftlab.data.readers import (
    AlpacaReader,
    GSM8KReader,
    MessagesReader,
    PairReader,
    Reader,
    RFTReader,
    ShareGPTReader,
)
from sftlab.data.records import HUB, read_records
from sftlab.data.stream import KINDS, BrokenRecord, kind_of

SAMPLE = 2_000  # records to read of a large file
_SMALL_BYTES = 1 << 24  # smaller files are read completely
_FITS = 0.95  # share of the sample that a reader must be able to read
_TRIED = 50  # records on which readers are tried
_ASKS = ("question", "prompt", "instruction", "query", "problem", "input", "user")
_ANSWERS = ("answer", "response", "completion", "output", "solution", "target", "assistant", "reply")
_MATH = re.compile(r"####|\\boxed|<<[^>]*>>|\d\s*[-+*/=]\s*\$?\d[\d,.]*\s*=|=\s*\$?\d")
_CODE = re.compile(
    r"```|\bdef \w+\(|\bimport \w+|#include|\breturn\b.*[;)]|[{};]\s*$|\bSELECT\b.+\bFROM\b|</\w+>", re.M
)
_NAMES = {"math": r"math|gsm|arith", "code": r"code|coder|python|program|sql"}
_TEST_NAME = re.compile(r"(^|[^a-z])(test|eval|valid|validation|val|dev)([^a-z]|$)")


@dataclass(frozen=True)
class Survey:
    """The content of a file.

    Attributes:
        path: The path as the user gave it.
        num_bytes: Its size; None for a hub id.
        num_records: Counted, or estimated from the sample.
        is_counted: Whether the file was read to its end.
        keys: Keys of its records, the most frequent first.
        reader: Turns its records into conversations; None if no reader fits.
        share_read: Share of the sample that the reader can read.
        kind: What the answers look like: math, code or general.
        talks: Conversations of the sample.
        trouble: Why it cannot be used; empty if it can.
    """

    path: str
    num_bytes: int | None = None
    num_records: int = 0
    is_counted: bool = True
    keys: tuple[str, ...] = ()
    reader: Reader | None = None
    share_read: float = 0.0
    kind: str = "general"
    talks: tuple[Conversation, ...] = field(default=(), repr=False)
    trouble: str = ""

    @property
    def looks_held_out(self) -> bool:
        """Whether its name suggests evaluation data."""
        return _TEST_NAME.search(Path(self.path).name.lower()) is not None

    @property
    def count_words(self) -> str:
        """Return its number of records in words."""
        return f"{self.num_records:,}" if self.is_counted else f"about {self.num_records:,}"


def find_files(folder: Path, most: int = 200, depth: int = 4) -> list[Path]:
    """Find files below a folder that may hold records, by their names, except hidden ones and results of runs."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("lightning_logs", "evaluations", "node_modules", "site-packages"):
            continue
        if path.is_dir() and depth and not (path / "config.json").is_file():
            found += find_files(path, most, depth - 1)
        elif path.is_file() and set(path.name.lower().split(".")[1:]) & set(KINDS):
            found.append(path)
        if len(found) >= most:
            return found[:most]
    return found


def survey(path: str) -> Survey:
    """Survey a file: all of a small one, the first records of a large one. Problems are returned, not raised."""
    is_hub = path.startswith(HUB)
    if "${" in path:
        return Survey(path, trouble="${ in a config begins a reference to something else: rename the file")
    try:
        size = None if is_hub else Path(path).stat().st_size
        packed = "" if is_hub else kind_of(Path(path))[1]
        is_small = size is not None and size <= _SMALL_BYTES // (10 if packed else 1)
        records = read_records(path)
        sample = list(islice(records, SAMPLE))
        num_records = len(sample)
        rest = sum(1 for _ in records) if is_small else sum(1 for _ in islice(records, 1))
    except (ValueError, OSError) as error:
        return Survey(path, trouble=str(error).removeprefix(f"{path}: "))
    about: dict[str, Any] = {"num_bytes": size, "is_counted": is_small or not rest, "num_records": num_records + rest}
    if not is_small and rest:
        about["num_records"] = _estimated(path, size, packed, sample)
    keys = Counter(str(key) for record in sample if isinstance(record, dict) for key in record)
    about["keys"] = tuple(key for key, _ in keys.most_common())
    reader = _fitting(sample)
    if reader is None:
        return Survey(path, **about, trouble=_why(sample))
    talks = list(_read(reader, sample))
    share = len(talks) / len(sample)
    if share < _FITS:
        return Survey(path, **about, trouble=f"{type(reader).__name__} reads only {share:.0%} of its records")
    return Survey(path, **about, reader=reader, share_read=share, kind=_kind(path, talks), talks=tuple(talks))


def _why(sample: Sequence[Any]) -> str:
    if not sample:
        return "it holds no records"
    if all(isinstance(record, BrokenRecord) for record in sample):
        return sample[0].reason
    return "no reader fits"


def _estimated(path: str, size: int | None, packed: str, sample: Sequence[Any]) -> int:
    """Estimate the number of records of a file that is not read to its end."""
    if path.startswith(HUB) or size is None:
        return len(sample)
    if path.lower().endswith(".parquet"):
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    texts = (json.dumps(record, ensure_ascii=False, default=str) for record in sample)
    each = sum(len(text.encode("utf-8", "replace")) + 2 for text in texts) / len(sample)
    return max(len(sample), int(size * (3 if packed else 1) / each) // 100 * 100)


def _fitting(sample: Sequence[Any]) -> Reader | None:
    """Return the reader that reads most of the first records; the first if several do."""
    tried = [record for record in sample[:_TRIED] if isinstance(record, dict)]
    best: tuple[int, Reader | None] = (0, None)
    for reader in _candidates(tried):
        num_read = sum(1 for _ in _read(reader, tried))
        if num_read > best[0]:
            best = (num_read, reader)
    return best[1] if best[0] >= _FITS * len(tried) else None


def _candidates(tried: Sequence[dict[str, Any]]) -> Iterator[Reader]:
    yield from (ShareGPTReader(), MessagesReader(), AlpacaReader(), GSM8KReader(), RFTReader())
    texts = Counter(key for record in tried for key, value in record.items() if isinstance(value, str) and value)
    for ask in _ASKS:
        for answer in _ANSWERS:
            asks, answers = ([key for key in texts if str(key).lower() == name] for name in (ask, answer))
            if asks and answers:
                yield PairReader(asks[0], answers[0])


def _read(reader: Reader, records: Sequence[Any]) -> Iterator[Conversation]:
    for record in records:
        try:
            yield reader.read(record)[0]
        except BadRecord:
            continue


def _kind(path: str, talks: Sequence[Conversation]) -> str:
    """Return what most answers look like; the file's name has half of their weight."""
    answers = [turn.text for talk in talks for turn in talk.turns if turn.role == "assistant"]
    name = Path(path).name.lower()
    shares = {}
    for kind, pattern in (("math", _MATH), ("code", _CODE)):
        named = 0.5 if re.search(_NAMES[kind], name) else 0.0
        shares[kind] = named + sum(bool(pattern.search(text)) for text in answers) / max(1, len(answers))
    best = max(shares, key=lambda kind: shares[kind])
    return best if shares[best] >= 0.5 else "general"
