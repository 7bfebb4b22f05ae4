"""Packing: examples laid into rows of at most ``max_length`` tokens.

Five examples of 5, 4, 3, 3 and 1 tokens in rows of 8 (best fit, longest first; `.` is padding):

    row 0   a a a a a c c c        positions   0 1 2 3 4 0 1 2
    row 1   b b b b d d d e        positions   0 1 2 3 0 1 2 0

Position ids restart with every example, and no attention crosses from one to another:

    row 0   a a a a a c c c
        a   x
        a   x x
        a   x x x
        a   x x x x
        a   x x x x x
        c             x
        c             x x
        c             x x x

Of rows with equal room, the most recently filled one comes first. Two algorithms give the same rows: within one group,
items of equal length are placed together; over many groups, the n-th items of all groups are.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from sftlab.plan.uids import index_type

_MOST_ROOM = 1 << 24  # items per group times groups that are packed together
_MANY_ITEMS, _FEW_GROUPS = 1024, 8  # larger groups, or fewer groups, are packed one by one
_CODES = {np.int32: "i", np.int64: "q"}


class Rows(NamedTuple):
    """Items in rows.

    Attributes:
        item_E: Positions of the items, row after row.
        sizes_R: Items of each row.
        rows_G: Rows of each group.
    """

    item_E: np.ndarray
    sizes_R: np.ndarray
    rows_G: np.ndarray

    def to_lists(self) -> list[list[int]]:
        """Return the items of each row."""
        return (
            [row.tolist() for row in np.split(self.item_E, np.cumsum(self.sizes_R)[:-1])] if len(self.sizes_R) else []
        )


def pack(lengths_E: np.ndarray, max_length: int) -> Rows:
    """Pack items into rows by best-fit decreasing.

    Args:
        lengths_E: Tokens of each item, each from 1 to ``max_length``.
        max_length: Tokens that a row holds.

    Raises:
        ValueError: An item is longer than a row, or empty.
    """
    lengths_E, kind = np.asarray(lengths_E), index_type(len(lengths_E))
    _check(lengths_E, max_length)
    order_E = _longest_first(lengths_E, max_length)
    sorted_E = lengths_E[order_E]
    starts = np.flatnonzero(np.diff(sorted_E, prepend=0)).tolist()
    ends = [*starts, len(order_E)][1:]
    row_E = np.empty(len(lengths_E), dtype=kind)
    num_rows, rooms = 0, 0  # bit r of rooms is set if a row has room for exactly r more tokens
    rows_with_room: dict[int, array] = {}
    for start, end, length in zip(starts, ends, sorted_E[starts].tolist(), strict=True):
        while start < end:
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else max_length
            each = room // length  # the row just filled is the best fit for the next item as long as it fits
            count = -(-(end - start) // each)
            if fitting:
                waiting = rows_with_room[room]
                taken = waiting[: -count - 1 : -1]
                del waiting[-len(taken) :]
                if not waiting:
                    rooms &= ~(1 << room)
            else:
                taken = array(_CODES[kind], range(num_rows, num_rows + count))
                num_rows += count
            stop = min(end, start + each * len(taken))
            row_E[start:stop] = np.repeat(np.frombuffer(taken, kind), each)[: stop - start]
            last = stop - start - each * (len(taken) - 1)  # items of the last row
            start = stop
            for rows, left in ((taken[:-1], room - each * length), (taken[-1:], room - last * length)):
                if left and rows:
                    rows_with_room.setdefault(left, array(_CODES[kind])).extend(rows)
                    rooms |= 1 << left
    item_E = order_E[np.argsort(row_E, kind="stable")]
    return Rows(item_E, np.bincount(row_E, minlength=num_rows), np.array([num_rows]))


def pack_groups(lengths_E: np.ndarray, group_size: int, max_length: int) -> Rows:
    """Pack each group of ``group_size`` items on its own, as ``pack`` would; the last group is what is left.

    Raises:
        ValueError: An item is longer than a row, or empty.
    """
    _check(lengths_E, max_length)
    width = min(group_size, len(lengths_E))
    if not width or width > _MANY_ITEMS or len(lengths_E) < _FEW_GROUPS * width:
        spans = [(start, start + group_size) for start in range(0, len(lengths_E), group_size)]
        return _joined([(start, pack(lengths_E[start:end], max_length)) for start, end in spans], len(lengths_E))
    at_once = max(1, _MOST_ROOM // width**2) * width
    whole = len(lengths_E) // width * width
    parts = []
    for start in range(0, whole, at_once):
        lengths_GW = lengths_E[start : min(whole, start + at_once)].reshape(-1, width)
        parts.append((start, _side_by_side(lengths_GW, max_length)))
    if whole < len(lengths_E):
        parts.append((whole, pack(lengths_E[whole:], max_length)))
    return _joined(parts, len(lengths_E))


def _side_by_side(lengths_GW: np.ndarray, max_length: int) -> Rows:
    """Pack groups of equal size; item W of all groups is placed before item W + 1 of any."""
    num_groups, width = lengths_GW.shape
    order_GW = _longest_first(lengths_GW, max_length)
    lengths_WG = np.take_along_axis(lengths_GW, order_GW, axis=1).T.astype(np.int64)
    # Encode a row as one number: its room, when it was last filled (recent first), its index. The smallest with enough
    # room is the best fit.
    bits = width.bit_length()
    row_RG = np.zeros((width, num_groups), dtype=np.int64)  # 0: empty or full
    rows_G = np.zeros(num_groups, dtype=np.int64)
    row_WG = np.empty((width, num_groups), dtype=np.int16)
    group_G, none = np.arange(num_groups), np.iinfo(np.int64).max
    for item, length_G in enumerate(lengths_WG):
        begun_RG = row_RG[: int(rows_G.max())]
        best_G = np.where(begun_RG >= length_G << 2 * bits, begun_RG, none).min(axis=0, initial=none)
        is_new_G = best_G == none
        at_G = np.where(is_new_G, rows_G, best_G & ((1 << bits) - 1))
        left_G = np.where(is_new_G, max_length, best_G >> 2 * bits) - length_G
        row_RG[at_G, group_G] = (left_G << 2 * bits) | (width - item) << bits | at_G
        row_WG[item] = at_G
        rows_G += is_new_G
    by_row_GW = np.argsort(row_WG.T, axis=1, kind="stable")
    item_GW = np.take_along_axis(order_GW, by_row_GW, axis=1) + (group_G * width).astype(order_GW.dtype)[:, None]
    number_WG = row_WG + (np.cumsum(rows_G) - rows_G)
    return Rows(item_GW.ravel(), np.bincount(number_WG.ravel(), minlength=int(rows_G.sum())), rows_G)


def _longest_first(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Return the stable order of the last axis from long to short; 16-bit numbers sort several times faster."""
    left = (max_length - lengths).astype(np.uint16 if max_length < 2**16 else np.int64)
    return np.argsort(left, kind="stable").astype(index_type(lengths.size))


def _check(lengths_E: np.ndarray, max_length: int) -> None:
    if len(wrong := np.flatnonzero((lengths_E < 1) | (lengths_E > max_length))):
        item = int(wrong[0])
        raise ValueError(f"item {item} has {int(lengths_E[item])} tokens; a row holds 1 to {max_length}")


def _joined(parts: list[tuple[int, Rows]], num_items: int) -> Rows:
    """Concatenate rows; the items of each part count from an offset."""
    kind = index_type(num_items)
    items = [np.empty(0, dtype=kind), *(rows.item_E.astype(kind) + kind(start) for start, rows in parts)]
    none = np.empty(0, dtype=np.int64)
    sizes, rows = [none, *(rows.sizes_R for _, rows in parts)], [none, *(rows.rows_G for _, rows in parts)]
    return Rows(np.concatenate(items), np.concatenate(sizes), np.concatenate(rows))
