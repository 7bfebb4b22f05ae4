"""The split: nothing held out is trained under any ability, and what should be held out is."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data.droplist import base_uid
from sftlab.data.split import Part, group_by_id, held_out


def part(ids, ability="general", fraction=0.1, uids=None):
    groups = [group_by_id(one, f"turn {number}") for number, one in enumerate(ids)]
    return Part(ability, uids or [f"{ability} {number}" for number in range(len(ids))], groups, fraction)


@pytest.mark.parametrize("ids", [
    [f"alpaca_{i}" for i in range(200)],
    [f"{name}_{i}" for name in ("alpaca", "conv") for i in range(100)],
    [f"c{i}_{n}" for i in range(100) for n in range(3)],
    [f"plain{i}" for i in range(200)],
])  # fmt: skip
def test_about_the_part_that_was_asked_for_is_held_out(ids):
    (chosen_N,) = held_out([part(ids)])
    assert 0.03 < chosen_N.mean() < 0.2


def test_pieces_of_a_conversation_stay_together_whatever_their_numbers():
    ids = [f"c{i}_{n}" for i in range(50) for n in (0, 4, 10)]
    (chosen_N,) = held_out([part(ids, fraction=0.5)])
    assert (chosen_N.reshape(50, 3) == chosen_N[::3, None]).all() and 0 < chosen_N.sum() < 150


def test_nothing_is_held_out_unless_asked_for_and_all_is_at_one():
    ids = [f"c{i}_0" for i in range(9)]
    assert not held_out([part(ids, fraction=0.0)])[0].any()
    assert held_out([part(ids, fraction=1.0)])[0].all()


EXAMPLES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=60)


@given(EXAMPLES, EXAMPLES, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=150, deadline=None)
def test_no_conversation_and_no_group_lies_on_both_sides(one, two, first, second):
    parts = [
        Part(name, [f"u{uid}#{i}" if i % 3 else f"u{uid}" for i, (uid, _) in enumerate(rows)],
             [f"g{group}" for _, group in rows], fraction)
        for name, rows, fraction in (("math", one, first), ("code", two, second))
    ]  # fmt: skip
    sides: dict[str, set[bool]] = {}
    for given_part, chosen_N in zip(parts, held_out(parts), strict=True):
        assert len(chosen_N) == len(given_part.uids)
        for uid, group, chosen in zip(given_part.uids, given_part.groups, chosen_N.tolist(), strict=True):
            sides.setdefault(base_uid(uid), set()).add(chosen)
            sides.setdefault(group, set()).add(chosen)
    assert all(len(found) == 1 for found in sides.values())


@given(st.permutations(range(40)))
@settings(max_examples=25, deadline=None)
def test_the_order_of_a_file_changes_nothing(order):
    ids, uids = [f"c{i // 3}_{i % 3}" for i in range(40)], [f"u{i // 2}" for i in range(40)]
    groups = [group_by_id(one, "x") for one in ids]
    (plain_N,) = held_out([Part("math", uids, groups, 0.4)])
    (other_N,) = held_out([Part("math", [uids[i] for i in order], [groups[i] for i in order], 0.4)])
    np.testing.assert_array_equal(plain_N[list(order)], other_N)


def test_of_max_examples_their_part_is_validated_on_and_the_rest_is_told(tmp_path, monkeypatch):
    from sftlab import MathData
    from sftlab.lab.tokenizer import lab_tokenizer

    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps({"query": f"What is {i}?", "response": f"{i}"}) + "\n" for i in range(400)))
    whole, some = (MathData(str(path), val_fraction=0.2, max_examples=n) for n in (None, 40))
    for data in (whole, some):
        data.template, data.max_length = "vicuna_short", 64
        data.load(lab_tokenizer())
    assert (len(some.pool(1)), some.num_held_out) == (40, 10)
    assert set(some.val_pool().uids_N) < set(whole.val_pool().uids_N)
    assert not set(some.val_pool().uids_N) & set(whole.pool(1).uids_N)
    assert some.content_hash() != whole.content_hash()
    assert f"{whole.num_held_out - 10} more are held out and not used" in some.notes()[0]
