"""Packing: every example in one row, no row too long, rows well filled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.plan.packing import pack


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 100))
def test_every_item_lies_in_exactly_one_row_that_holds_it(lengths, max_length):
    rows = pack(lengths, max_length)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[item] for item in row) <= max_length for row in rows)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_no_two_rows_would_fit_into_one(lengths):
    totals = sorted(sum(lengths[item] for item in row) for row in pack(lengths, 64))
    assert len(totals) < 2 or totals[0] + totals[1] > 64


def test_rows_of_chat_lengths_are_filled():
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 5000), 20, 2048).astype(int)
    rows = pack(lengths.tolist(), 2048)
    assert lengths.sum() / (len(rows) * 2048) > 0.98


@pytest.mark.parametrize("length", [0, 9])
def test_an_item_that_fits_no_row_is_refused(length):
    with pytest.raises(ValueError, match="1 to 8"):
        pack([3, length], 8)
