"""A drop list: a file of conversations to leave out, by uid and with a reason, as written by other tools.

Each line is a JSON object: ``{"uid": "0f3c...", "reason": "tag: code"}``. A line that names an ``ability`` applies to
that ability only, so that one file can serve a whole mixture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sftlab.data.conversation import halves_replaced
from sftlab.data.json_records import parse_json
from sftlab.data.stream import regular_file, text_lines
from sftlab.files import whole_file

NOT_FOUND = "drop list: uid that no conversation has"
ELSEWHERE = "drop list: line for another ability"
_MOST_REASONS = 100  # reasons listed separately: nobody reads more
_KEYS = ("uid", "reason", "ability")
_PIECE = re.compile(r"/\d+")


class Drop(NamedTuple):
    """One line: a conversation's uid, why it is left out, and the ability that it applies to (all if empty)."""

    uid: str
    reason: str
    ability: str = ""


def base_uid(uid: str) -> str:
    """Return a conversation's uid from an example's: without the ``/n`` of a piece and the ``#n`` of a repeat."""
    return uid.partition("/")[0].partition("#")[0]


class DropList:
    """The conversations that one ability leaves out.

    Attributes:
        reasons: Reason by uid; if several lines name a uid, the first counts.
        num_elsewhere: Number of lines that name another ability.
    """

    def __init__(self, drops: Iterable[Drop], ability: str) -> None:
        self.reasons: dict[str, str] = {}
        self.num_elsewhere = 0
        for drop in drops:
            if drop.ability in ("", ability):
                self.reasons.setdefault(drop.uid, drop.reason)
            else:
                self.num_elsewhere += 1

    @classmethod
    def read(cls, path: str | Path, ability: str) -> DropList:
        """Read the lines of a file that apply to an ability.

        Raises:
            ValueError: The file is missing, or a line is malformed; the message says which.
        """
        return cls(read_drops(path), ability)

    def __contains__(self, uid: str) -> bool:
        """Return whether a conversation, or the conversation of an example, is left out."""
        return base_uid(uid) in self.reasons

    def content_hash(self) -> str:
        """Hash the uids: lists with equal hashes leave out the same conversations."""
        return hashlib.blake2b("\n".join(sorted(self.reasons)).encode(), digest_size=16).hexdigest()

    def dropped(self, uids: Sequence[str]) -> np.ndarray:
        """Return which [N] of these examples are left out."""
        if not self.reasons:
            return np.zeros(len(uids), dtype=bool)
        return np.fromiter((uid in self for uid in uids), dtype=bool, count=len(uids))

    def counts(self, uids: Sequence[str]) -> dict[str, int]:
        """Count the records left out, by reason, given all examples, and the lines without effect."""
        records = {_PIECE.sub("", uid) for uid in uids if uid in self} if self.reasons else set()
        reasons = Counter(f"dropped: {self.reasons[base_uid(record)]}" for record in records)
        counts = Counter(dict(reasons.most_common(_MOST_REASONS)))
        counts["dropped: other reasons of the drop list"] = reasons.total() - counts.total()
        counts[NOT_FOUND] = len(self.reasons.keys() - {base_uid(record) for record in records})
        counts[ELSEWHERE] = self.num_elsewhere
        return {cause: count for cause, count in counts.items() if count}


def read_drops(path: str | Path) -> list[Drop]:
    """Read the lines of a drop list.

    Raises:
        ValueError: The file is missing, or a line is malformed; the message says which.
    """
    try:
        lines = list(text_lines(regular_file(str(path))))
    except ValueError as error:
        raise ValueError(f"drop: {error}") from None
    return [_read_line(f"drop: {path}, line {n:,}", line) for n, line in enumerate(lines, start=1) if line.strip()]


def _read_line(where: str, line: str) -> Drop:
    try:
        row = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    wanted = 'a line is {"uid": "...", "reason": "..."}, perhaps with "ability"'
    if not isinstance(row, dict) or not {"uid", "reason"} <= row.keys() <= set(_KEYS):
        raise ValueError(f"{where}: {wanted}")
    texts = [row[key] for key in _KEYS if key in row]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: an empty value, or one that is not text; {wanted}")
    if any(halves_replaced(text) != text for text in texts):
        raise ValueError(f"{where}: half of a surrogate pair, which is not text; {wanted}")
    if base_uid(row["uid"]) != row["uid"]:
        raise ValueError(f"{where}: {row['uid']} is an example; give its conversation, {base_uid(row['uid'])}")
    return Drop(**row)


def write_drops(path: Path, drops: Iterable[Drop]) -> None:
    """Write a drop list; the file appears only when complete."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for drop in drops:
            row = {key: value for key, value in drop._asdict().items() if value}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
