"""Repeats are counted as a plain counter counts them, however many names are remembered as arrays."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.data import repeats
from sftlab.data.repeats import Repeats

NAMES = st.tuples(st.binary(min_size=2, max_size=2), st.sampled_from(["", "/0", "/1", "/12345"]))


@pytest.fixture(autouse=True, scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_RECENT", 3)
        yield


@given(st.lists(st.lists(NAMES, max_size=8), max_size=20))
def test_they_count_as_a_counter_does(chunks):
    counter, found = Counter[bytes](), Repeats()
    for chunk in chunks:
        names = [bytes(b % 3 for b in uid) + end.encode() for uid, end in chunk]
        expected = []
        for name in names:
            counter[name] += 1
            expected.append(counter[name])
        assert found.count(names) == expected
