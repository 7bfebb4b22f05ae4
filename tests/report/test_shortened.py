"""Names in figures: short, and never two alike that are not."""

from hypothesis import given
from hypothesis import strategies as st

from sftlab.report.text import apart

NAMES = st.lists(st.text("ab=.19\u2026 ", max_size=30), max_size=6)


@given(NAMES, st.integers(4, 30))
def test_names_that_differ_are_shown_apart_and_equal_ones_alike(names, most):
    shown = apart(names, most)
    assert len(set(zip(names, shown, strict=True))) == len(set(names)) == len(set(shown))


@given(NAMES, st.integers(4, 30))
def test_what_is_told_apart_by_its_beginning_is_no_longer_than_it_may_be(names, most):
    apart_already = [f"{i} {name}" for i, name in enumerate(names)]
    assert all(len(text) <= most for text in apart(apart_already, most))


def test_a_composition_is_read_whole_and_ends_give_way_before_what_differs():
    shares = [f"p share_math={m} share_code=0.230769231 share_general={1 - m:.9f}" for m in (0.461538462, 0.615384615)]
    assert apart(shares, 72) == [
        "p share_math=0.462 share_code=0.231 share_general=0.538",
        "p share_math=0.615 share_code=0.231 share_general=0.385",
    ]
    long = [f"{'a' * 60} k={k} {'b' * 60}" for k in (1, 2)] + [f"{'c' * 60}{end}" for end in "xy"]
    assert apart(long, 20) == [*long[:2], f"{'c' * 10}\u2026{'c' * 8}x", f"{'c' * 10}\u2026{'c' * 8}y"]
    close = ["lr=0.00010001", "lr=0.00010002"]
    assert apart(close, 8) == ["lr=0…001", "lr=0…002"]
