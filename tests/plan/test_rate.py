"""Learning-rate schedules: what they were stays as it was to the last bit, and each has the shape that it names."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.plan.rate import WSD, Constant, Cosine, Linear, LRSchedule

# As the first release of staged training computed them: (step, steps, warm-up) -> factor.
GOLDEN = {
    (0, 10, 0.3): "0x1.0000000000000p-2", (2, 10, 0.3): "0x1.8000000000000p-1", (3, 10, 0.3): "0x1.0000000000000p+0",
    (7, 10, 0.3): "0x1.8e11bc73f6ea0p-2", (9, 10, 0.3): "0x1.95a1ab1a51c80p-5", (0, 3, 0.03): "0x1.0000000000000p+0",
    (2, 3, 0.03): "0x1.0000000000002p-2", (500, 1237, 0.03): "0x1.59dcc0595d53cp-1",
}  # fmt: skip
KINDS = [Cosine(), Cosine(0.1), Linear(), Linear(0.2), Constant(), WSD(), WSD(0.5, 0.1), WSD(0.0), WSD(1.0)]


@pytest.mark.parametrize("place", GOLDEN)
def test_the_default_is_what_it_was_bit_for_bit(place):
    step, num_steps, ratio = place
    assert Cosine().with_warmup(step, num_steps, int(ratio * num_steps)).hex() == GOLDEN[place]


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from(KINDS))
def test_every_schedule_rises_to_its_peak_once_and_never_rises_again(num_steps, warmup_ratio, kind):
    warmup = int(warmup_ratio * num_steps)
    factors = [kind.with_warmup(step, num_steps, warmup) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert all(a < b for a, b in itertools.pairwise(factors[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(factors[warmup:]))
    if warmup < num_steps and kind.__class__ is not WSD:
        assert factors[warmup] == pytest.approx(1)
    assert min(factors[warmup:], default=1) >= getattr(kind, "floor", 0)


def test_each_has_the_shape_that_it_names():
    def at(kind: LRSchedule, part: float) -> float:
        return kind.factor(round(part * 1000), 1000)

    assert at(Cosine(), 0.5) == pytest.approx(0.5) and at(Cosine(0.2), 0.5) == pytest.approx(0.6)
    assert at(Cosine(0.2), 0.25) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert at(Linear(), 0.25) == pytest.approx(0.75) and at(Linear(0.2), 0.5) == pytest.approx(0.6)
    assert at(Constant(), 0.999) == 1
    assert at(WSD(0.2), 0.799) == 1 and at(WSD(0.2), 0.9) == pytest.approx(0.5, abs=0.01)
    assert at(WSD(0.2, floor=0.5), 0.999) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), "much"])
@pytest.mark.parametrize("kind", [Cosine, Linear, WSD])
def test_values_that_make_no_sense_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=r"lr_schedule\.floor"):
        kind(floor=wrong)
