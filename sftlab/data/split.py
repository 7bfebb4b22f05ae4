"""The split: which examples are held out for validation, so that nothing held out is trained and nothing vanishes.

What must stay together is linked, over all abilities of a mixture: examples of one group (a question, the pieces of a
conversation) and equal conversations, wherever they stand. Linked examples lie on one side, and a hash decides which.

    math     q1 q1 q2 q3          q1 and q1: one group
    general  c1 c1 c2 q3          q3 stands under both abilities: held out of both, or trained by both
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sftlab.data.droplist import base_uid
from sftlab.plan.pool import seed_from

BY_ID = "_*"  # in a group: before it what of a record's id names a conversation, after it the group if ids do not
_MOST_PIECES = 20  # an id that stands before as many numbers, and before more than there are ids, counts records


class Part(NamedTuple):
    """The examples of one ability.

    Attributes:
        ability: Its name.
        uids: Of its examples.
        groups: What must stay together, by example.
        val_fraction: Part of the groups that is held out.
    """

    ability: str
    uids: Sequence[str]
    groups: Sequence[str]
    val_fraction: float


def group_by_id(record_id: str, otherwise: str) -> str:
    """The group of a record whose id may end in the number of a piece, as ShareGPT's do: ``i6IyJda_0``.

    Whether it does can only be told from all ids of a file: ``alpaca_0, alpaca_1 ...`` count its records.

    Args:
        record_id: As the record has it.
        otherwise: The group if ids do not tell conversations apart.
    """
    name, underscore, number = record_id.rpartition("_")
    is_piece = underscore and name and number.isdecimal()
    return f"{name if is_piece else record_id}{BY_ID}{otherwise}"


def held_out(parts: Sequence[Part]) -> list[np.ndarray]:
    """Which examples [N] of each part are held out; a pure function of names, uids, groups and fractions.

    Where abilities of several fractions share conversations, the largest holds for those.
    """
    if not any(part.val_fraction for part in parts):
        return [np.zeros(len(part.uids), dtype=bool) for part in parts]
    settled = [_settled(part) for part in parts]
    links = _Links()
    for part, groups in zip(parts, settled, strict=True):
        for uid, group in zip(part.uids, groups, strict=True):
            links.add(base_uid(uid), group)
    first: dict[_Group, tuple[str, str]] = {}  # of the groups that are linked, the one whose hash decides
    fractions: dict[_Group, float] = {}
    for part, groups in zip(parts, settled, strict=True):
        for group in set(groups):
            root, named = links.root(group), (part.ability, group[1])
            first[root] = min(first.get(root, named), named)
            fractions[root] = max(fractions.get(root, 0.0), part.val_fraction)
    out = {root: seed_from("held out", *named) < int(fractions[root] * 2**64) for root, named in first.items()}
    return [np.fromiter((out[links.root(group)] for group in groups), bool, len(groups)) for groups in settled]


_Group = tuple[str, str]  # ability where ids name it, or nothing; name


def _settled(part: Part) -> list[_Group]:
    """The groups, with it settled what ids say: pieces of a conversation are one, counted records are not."""
    by_id = [group.partition(BY_ID) for group in part.groups]
    is_first = ("/" not in uid or uid.partition("#")[0].endswith("/0") for uid in part.uids)
    records = Counter(name for (name, marked, _), first in zip(by_id, is_first, strict=True) if marked and first)
    num_names = len(records) + len({name for name, marked, _ in by_id if not marked})
    most = 1 if num_names == 1 else max(_MOST_PIECES - 1, num_names)
    counts = {name for name, num_records in records.items() if num_records > most}
    return [
        (part.ability, name) if marked and name not in counts else ("", otherwise or name)
        for name, marked, otherwise in by_id
    ]


class _Links:
    """Groups that equal conversations link."""

    def __init__(self) -> None:
        self._above: dict[_Group, _Group] = {}
        self._group_of: dict[str, _Group] = {}  # by conversation

    def add(self, conversation: str, group: _Group) -> None:
        """Link a group with the other groups of a conversation."""
        other = self._group_of.setdefault(conversation, group)
        if other != group:
            low, high = sorted((self.root(other), self.root(group)))
            if low != high:
                self._above[high] = low

    def root(self, group: _Group) -> _Group:
        """The group that stands for all that this one is linked with."""
        while (above := self._above.get(group, group)) != group:
            self._above[group] = self._above.get(above, above)
            group = above
        return group
