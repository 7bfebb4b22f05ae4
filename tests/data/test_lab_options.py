"""The dials of generated data reach what is trained."""

import pytest

from sftlab.data.ability import MathData
from sftlab.data.conversation import Conversation, Turn
from sftlab.lab.abilities import lab_conversations
from sftlab.lab.options import LabOptions


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_labs_options_reach_the_examples_and_their_key(noise):
    """Whatever dial is turned, what is trained is what the generator gives, and its key is another."""
    plain = MathData(num_examples=30)
    other = MathData(num_examples=30, lab=LabOptions(noise=noise, seed=4))
    told = [
        Conversation(tuple(Turn(*turn) for turn in talk.turns), talk.group).uid
        for talk in lab_conversations("math", 30, options=LabOptions(noise=noise, seed=4))
    ]
    assert [uid for uid, _ in other.conversations()] == told
    assert plain.source.key("math") != other.source.key("math")
    assert MathData(num_examples=30, lab=LabOptions()).source.key("math") == plain.source.key("math")
    with pytest.raises(ValueError, match=r"lab: .* has no use with path 'a\.jsonl'"):
        MathData("a.jsonl", lab=LabOptions())
