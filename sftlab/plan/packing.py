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
"""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Lay items into as few rows as best-fit decreasing finds.

    Args:
        lengths: Tokens of each item, each from 1 to ``max_length``.
        max_length: Tokens that a row holds.

    Returns:
        Rows, each a list of positions in ``lengths``; each position stands in exactly one row.

    Raises:
        ValueError: An item is longer than a row, or empty.
    """
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set when some row has room for exactly r more tokens: the best fit is one bit trick away
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = int(lengths[item])
        if not 1 <= length <= max_length:
            raise ValueError(f"item {item} has {length} tokens; a row holds 1 to {max_length}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(item)
        room -= length
        if room:
            rows_with_room.setdefault(room, []).append(row)
            rooms |= 1 << room
    return rows
