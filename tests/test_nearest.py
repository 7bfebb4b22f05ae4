"""The nearest name is what was meant, also where its initials were written."""

import pytest

from sftlab.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr", "learning_rate"),
        ("wd", "weight_decay"),
        ("LR", "learning_rate"),
        ("learning_rat", "learning_rate"),
        ("l", None),
    ],
)
def test_the_nearest_name_is_a_slip_or_initials(wrong, meant):
    known = ["path", "learning_rate", "weight_decay", "warmup_ratio", "warmup_steps"]
    assert nearest(wrong, known) == meant
    assert did_you_mean("lr", [*known, "last_row"], "there are many") == "there are many", "two may be meant"
