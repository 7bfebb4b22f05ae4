"""The split: which examples are held out, so that nothing held out is trained and no example gets lost.

Examples that must stay together are linked, over all abilities of a mixture: those of one group (a question, the pieces
of a conversation) and equal conversations. Linked examples are on the same side, and a hash decides which.

    math     q1 q1 q2 q3          q1 and q1: one group
    general  c1 c1 c2 q3          q3 stands under both abilities: held out of both, or trained by both
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from sftlab.data.droplist import base_uid
from sftlab.plan.pool import seed_from

BY_ID = "_*"  # in a group: separates the name that a record's id gives from the group to use without ids
_MOST_PIECES = 20  # an id that precedes at least as many numbers, and more than there are ids, counts records


class Part(NamedTuple):
    """The examples of one ability.

    Attributes:
        ability: Its name.
        uids: Uids of its examples.
        groups: The group of each example.
        val_fraction: Fraction of the groups to hold out.
    """

    ability: str
    uids: Sequence[str]
    groups: Sequence[str]
    val_fraction: float


def group_by_id(record_id: str, otherwise: str) -> str:
    """Return the group of a record whose id may end in the number of a piece, as ShareGPT's do: ``i6IyJda_0``.

    Whether it does can only be told from all ids of a file: ``alpaca_0, alpaca_1 ...`` count its records.

    Args:
        record_id: The record's id.
        otherwise: The group if ids do not tell conversations apart.
    """
    name, underscore, number = record_id.rpartition("_")
    is_piece = underscore and name and number.isdecimal()
    return f"{name if is_piece else record_id}{BY_ID}{otherwise}"


def held_out(parts: Sequence[Part]) -> list[np.ndarray]:
    """Decide which examples [N] of each part are held out: a pure function of names, uids, groups and fractions.

    If abilities with different fractions share conversations, the largest fraction applies to those.
    """
    if not any(part.val_fraction for part in parts):
        return [np.zeros(len(part.uids), dtype=bool) for part in parts]
    places = sorted(range(len(parts)), key=lambda place: parts[place].ability)
    ordered = [parts[place] for place in places]  # so that a group's first example is in the ability that names it
    settled = [_Settled(part) for part in ordered]
    groups = np.concatenate([found.group_N for found in settled])
    _, first_G, group_E = np.unique(groups, return_index=True, return_inverse=True)
    root_G = _linked(len(first_G), group_E, np.concatenate([found.talk_N for found in settled]))
    root_E, sizes = root_G[group_E], [len(part.uids) for part in ordered]
    fractions_G = np.zeros(len(first_G))
    np.maximum.at(fractions_G, root_E, np.repeat([part.val_fraction for part in ordered], sizes))
    out_G, starts = np.zeros(len(first_G), dtype=bool), np.cumsum([0, *sizes])
    number_G = _numbers_by_name(ordered, settled, first_G, root_G)
    for fraction in np.unique(fractions_G).tolist():
        limit = int(fraction * 2**64)
        out_G |= (fractions_G == fraction) & (True if limit == 2**64 else number_G < np.uint64(limit))
    found = {place: out_G[root_E[starts[i] : starts[i + 1]]] for i, place in enumerate(places)}
    return [found[place] for place in range(len(parts))]


class _Settled:
    """The groups of a part, once it is decided whether ids name conversations (pieces share a group) or count records.

    Attributes:
        group_N: A hash of each example's group.
        talk_N: A hash of each example's conversation.
        is_named_N: Whether the id names the group; else the text after it does, or all of it.
    """

    def __init__(self, part: Part) -> None:
        names, others, marks, firsts, talks = ([np.empty(0, kind)] for kind in (_KEY, _KEY, bool, bool, _KEY))
        for uids, groups in _chunks(part):
            talks.append(_hashed(map(base_uid, uids)))
            marks.append(np.array([BY_ID in group for group in groups]))
            if marks[-1].any():
                cut = [group.partition(BY_ID) for group in groups]
                names.append(_hashed(name for name, _, _ in cut))
                others.append(_hashed(other or name for name, _, other in cut))
                firsts.append(np.array(["/" not in uid or uid.partition("#")[0].endswith("/0") for uid in uids]))
            else:
                names.append(_hashed(groups))
                others.append(names[-1])
                firsts.append(np.zeros(len(uids), dtype=bool))
        name_N, other_N, marked_N, first_N, self.talk_N = map(np.concatenate, (names, others, marks, firsts, talks))
        records, num_records = np.unique(name_N[marked_N & first_N], return_counts=True)
        num_names = len(records) + len(np.unique(name_N[~marked_N]))
        most = 1 if num_names == 1 else max(_MOST_PIECES - 1, num_names)
        self.is_named_N = marked_N & ~np.isin(name_N, records[num_records > most])
        of_ability = np.uint64(seed_from("ids of", part.ability))
        self.group_N = np.where(self.is_named_N, name_N ^ of_ability, other_N)


_KEY = np.uint64
_CHUNK = 1 << 16  # examples whose texts are in memory at once


def _chunks(part: Part) -> Iterator[tuple[list[str], list[str]]]:
    uids, groups = iter(part.uids), iter(part.groups)
    while chunk := list(islice(uids, _CHUNK)):
        yield chunk, list(islice(groups, _CHUNK))


def _hashed(texts: Iterable[str], before: str = "") -> np.ndarray:
    """Return the numbers that ``seed_from`` derives from texts, with the given values before each."""
    start = hashlib.blake2b(before.encode(), digest_size=8)

    def digest(text: str) -> bytes:
        found = start.copy()
        found.update(text.encode())
        return found.digest()

    return np.frombuffer(b"".join(map(digest, texts)), "<u8").astype(_KEY)


def _linked(num_groups: int, group_E: np.ndarray, talk_E: np.ndarray) -> np.ndarray:
    """Return for each group the representative of all groups linked with it by equal conversations."""
    order_E = np.argsort(talk_E, kind="stable")
    talks_E, groups_E = talk_E[order_E], group_E[order_E]
    links = np.flatnonzero((talks_E[1:] == talks_E[:-1]) & (groups_E[1:] != groups_E[:-1]))
    above: dict[int, int] = {}

    def root(group: int) -> int:
        while (over := above.get(group, group)) != group:
            above[group] = above.get(over, over)
            group = over
        return group

    for one, other in zip(groups_E[links].tolist(), groups_E[links + 1].tolist(), strict=True):
        low, high = sorted((root(one), root(other)))
        if low != high:
            above[high] = low
    root_G = np.arange(num_groups)
    for group in above:
        root_G[group] = root(group)
    return root_G


def _numbers_by_name(
    parts: Sequence[Part], settled: Sequence[_Settled], first_G: np.ndarray, root_G: np.ndarray
) -> np.ndarray:
    """Return the number that decides about each root: that of the first name, by ability and text, of its groups."""
    number_G, order_G, start = np.zeros(len(root_G), dtype=_KEY), np.argsort(first_G), 0
    is_linked_G = np.bincount(root_G)[root_G] > 1
    named: dict[int, tuple[str, str]] = {}  # roots that also represent other groups
    for part, found in zip(parts, settled, strict=True):
        offset = start
        for _, groups in _chunks(part):
            begin, end = np.searchsorted(first_G, [start, start + len(groups)], sorter=order_G)
            mine, texts = order_G[begin:end], []
            for place in (first_G[mine] - start).tolist():
                name, _, other = groups[place].partition(BY_ID)
                texts.append(name if found.is_named_N[start - offset + place] else other or name)
            number_G[mine] = _hashed(texts, "\x1f".join(("held out", part.ability, "")))
            for at in np.flatnonzero(is_linked_G[mine]).tolist():
                root, name_of = int(root_G[mine[at]]), (part.ability, texts[at])
                named[root] = min(named.get(root, name_of), name_of)
            start += len(groups)
    for root, name_of in named.items():
        number_G[root] = seed_from("held out", *name_of)
    return number_G
