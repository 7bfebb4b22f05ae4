"""Near-duplicates: shingles and Jaccard as plain sets have them, no similar pair missed, none invented."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.analysis.card.minhash import SHINGLE_WORDS, THRESHOLD, jaccard, near_duplicates, shingles, signature

WORDS = st.lists(st.sampled_from("a b c".split()), max_size=30)


def plain(words):
    size = max(1, min(SHINGLE_WORDS, len(words)))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} or {()}


@given(WORDS, WORDS)
@settings(max_examples=200, deadline=None)
def test_similarity_is_that_of_the_sets(first, second):
    one, two = plain(first), plain(second)
    assert len(shingles(first)) == len(one)
    assert jaccard(shingles(first), shingles(second)) == pytest.approx(len(one & two) / len(one | two))


def test_a_signature_estimates_the_similarity():
    rng = random.Random(1)
    words = [str(rng.random()) for _ in range(400)]
    for kept in (400, 380, 300, 200):
        other = words[:kept] + [str(rng.random()) for _ in range(400 - kept)]
        exact = jaccard(shingles(words), shingles(other))
        estimate = float((signature(shingles(words)) == signature(shingles(other))).mean())
        assert abs(estimate - exact) < 4 * np.sqrt(max(exact * (1 - exact), 1e-9) / 120) + 1e-9


def changed(words, rng, num_changes):
    words = list(words)
    for _ in range(num_changes):
        words[rng.randrange(len(words))] = str(rng.random())
    return words


def test_every_pair_that_a_search_of_all_pairs_finds_is_found():
    rng = random.Random(2)
    texts = [[rng.choice("one two three four five six seven".split()) for _ in range(60)] for _ in range(80)]
    texts += [changed(rng.choice(texts), rng, rng.randint(0, 3)) for _ in range(120)]
    sets = [shingles(words) for words in texts]
    found = near_duplicates(np.array([signature(s) for s in sets]), lambda wanted: {i: sets[i] for i in wanted})
    wanted = {
        (i, j): value for i in range(200) for j in range(i + 1, 200)
        if (value := jaccard(sets[i], sets[j])) >= THRESHOLD
    }  # fmt: skip
    by_pair = {(min(p.first, p.second), max(p.first, p.second)): p.similarity for p in found}
    assert by_pair.items() <= wanted.items()
    missed = set(wanted) - set(by_pair)
    assert len(wanted) > 60 and len(missed) <= len(wanted) / 20
    assert not [pair for pair in missed if wanted[pair] >= 0.8]
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)


def test_a_crowd_of_equal_signatures_costs_no_square():
    sets = [shingles(["word"] * 5)] * 3000
    found = near_duplicates(np.array([signature(sets[0])] * 3000), lambda wanted: {i: sets[i] for i in wanted})
    assert len(found) < 3 * 3000 and {i for pair in found for i in pair[:2]} == set(range(3000))
