"""Uids as bytes: they read as the texts that they are, and rank as their hashes do."""

import hashlib
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftlab.plan.uids import Uids, digest_order

TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12), max_size=30)


@given(st.lists(TEXTS, max_size=4), st.data())
def test_they_are_the_texts_that_they_were_made_of(parts, data):
    texts = [text for part in parts for text in part]
    uids = Uids.joined([Uids.of(part) for part in parts])
    assert uids == texts and len(uids) == len(texts) and uids.tolist() == texts
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=40) if texts else st.just([]))
    some = uids[np.array(chosen, dtype=np.int64)]
    assert some == [texts[i] for i in chosen] and [uids[i] for i in chosen] == list(some)
    assert some[3:9] == [texts[i] for i in chosen][3:9] and (not texts or uids[-1] == texts[-1])
    whole, parted = hashlib.blake2b("\n".join(some).encode()), hashlib.blake2b()
    some.add_to(parted)
    assert parted.digest() == whole.digest()
    starts, data = some.buffers()
    parts = [bytes(data[start:end]) for start, end in itertools.pairwise(starts.tolist())]
    assert [part.decode() for part in parts] == list(some)


@given(TEXTS, st.binary(min_size=1, max_size=8))
def test_their_order_is_that_of_their_keyed_hashes(texts, key):
    hashes = [hashlib.blake2b(text.encode(), digest_size=16, key=key).digest() for text in texts]
    assert Uids.of(texts).order_by_hash(key).tolist() == sorted(range(len(texts)), key=hashes.__getitem__)


@given(st.lists(st.binary(min_size=3, max_size=3), max_size=60))
def test_hashes_that_share_their_first_half_are_told_apart_by_the_second(ends):
    digests = [bytes(7) + end[:1] + bytes(6) + end[1:] for end in (bytes(b % 3 for b in end) for end in ends)]
    order = digest_order(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))
    assert order.tolist() == sorted(range(len(digests)), key=digests.__getitem__)
