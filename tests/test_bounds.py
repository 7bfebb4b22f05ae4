"""Numbers without sense end in one message that names the key."""

import pytest

from sftlab.bounds import within
from sftlab.data.ability import MathData
from sftlab.data.mixture import MixtureData

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("key", ["fraction", "val_fraction", "max_bad_share"])
@pytest.mark.parametrize("value", [NAN, INFINITE, -0.1, 1.1, "half", True, None])
def test_parts_lie_between_0_and_1(key, value):
    with pytest.raises(ValueError, match=key):
        MathData(num_examples=5, **{key: value})


@pytest.mark.parametrize("value", [0, -1, 10**18, 2.5, NAN])
@pytest.mark.parametrize("key", ["num_examples", "max_examples"])
def test_counts_are_whole_and_at_least_1(key, value):
    with pytest.raises(ValueError, match=key):
        MathData(**{"num_examples": 5, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_length", 0), ("max_length", 10**18), ("num_workers", -1), ("seed", -1), ("batch", {"rows": 0}),
     ("batch", {"examples": NAN}), ("batch", {}), ("batch", {"pages": 1}), ("batch", {"rows": 1, "examples": 1})],
)  # fmt: skip
def test_options_of_the_mixture_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"data\.{key}"):
        MixtureData({"math": MathData(num_examples=5)}, **{key: value})


@pytest.mark.parametrize("value", [1, 1.0, 3, 4.0])
def test_the_bounds_themselves_have_sense_and_what_lies_beyond_has_none(value):
    assert within("x", value, 1, 4, is_whole=True) is None
    for beyond in (value - 4, value + 4, value + 0.5, 10**400):
        with pytest.raises(ValueError, match="x: "):
            within("x", beyond, 1, 4, is_whole=True)


def test_at_most_so_many_examples_are_used_the_first_in_rank():
    few, all_of_them = (MathData(None, num_examples=50, max_examples=n).pool(1) for n in (7, None))
    assert few.index_N.tolist() == all_of_them.index_N[:7].tolist() and few.population == 50
    assert MathData(None, num_examples=50, max_examples=7).notes() == ["math: 7 of 50 examples by max_examples."]


def test_a_fraction_and_a_count_are_refused_together():
    with pytest.raises(ValueError, match="both say how much is used"):
        MathData(None, num_examples=50, max_examples=7, fraction=0.5)
