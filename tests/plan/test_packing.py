"""Packing: every example in one row, no row too long, rows well filled; groups as each for itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.plan.packing import pack, pack_groups

LENGTHS = st.one_of(st.lists(st.integers(1, 64), max_size=200), st.lists(st.sampled_from([3, 20, 31]), max_size=200))


def best_fit(lengths, max_length):
    """Best-fit decreasing by its definition: of rows with the least room that is enough, the one laid into last."""
    rows, rooms, laid = [], [], []
    for time, item in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[item]]
        row = min(fitting, key=lambda r: (rooms[r], -laid[r]), default=len(rows))
        if row == len(rows):
            rows.append([]), rooms.append(max_length), laid.append(time)
        rows[row].append(item)
        rooms[row] -= lengths[item]
        laid[row] = time
    return rows


@given(LENGTHS, st.integers(64, 100))
def test_rows_are_those_of_best_fit_decreasing(lengths, max_length):
    rows = pack(lengths, max_length)
    assert rows.to_lists() == best_fit(lengths, max_length)
    assert rows.rows_G.tolist() == [len(rows.sizes_R)]


@given(LENGTHS, st.integers(1, 30), st.sampled_from([64, 100, 100_000]))
def test_groups_are_packed_each_for_itself(lengths, size, max_length):
    starts = range(0, len(lengths), size)
    wanted = [best_fit(lengths[start : start + size], max_length) for start in starts]
    rows = pack_groups(np.array(lengths, dtype=np.int32), size, max_length)
    assert rows.rows_G.tolist() == [len(group) for group in wanted]
    moved = [[item + start for item in row] for start, group in zip(starts, wanted, strict=True) for row in group]
    assert rows.to_lists() == moved


def test_rows_of_chat_lengths_are_filled():
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 5000), 20, 2048).astype(int)
    assert lengths.sum() / (len(pack(lengths, 2048).sizes_R) * 2048) > 0.98


@pytest.mark.parametrize("length", [0, 9])
def test_an_item_that_fits_no_row_is_refused(length):
    with pytest.raises(ValueError, match="1 to 8"):
        pack([3, length], 8)
    with pytest.raises(ValueError, match="1 to 8"):
        pack_groups(np.array([3, length]), 1, 8)
