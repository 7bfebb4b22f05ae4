"""Architectures from keyword arguments: what no model can be built of is told before anything is trained."""

import pytest

from sftlab.model.backbone import count_parameters, load_config

GOOD = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0), ("hidden_size", -16), ("hidden_size", [16, 16]), ("hidden_size", "x"), ("hidden_size", 17),
        ("num_hidden_layers", [1, [1]]), ("num_hidden_layers", -1), ("num_attention_heads", 0),
        ("num_attention_heads", 32),
        ("vocab_size", -3), ("intermediate_size", 0), ("num_key_value_heads", 3), ("head_dim", 3), ("rope_theta", "x"),
        ("rope_scaling", {"type": "none of it"}), ("hidden_act", "none of it"), ("pad_token_id", 99999), ("dtype", "x"),
    ],
)  # fmt: skip
def test_what_no_model_can_be_built_of_is_one_message(name, value):
    with pytest.raises(ValueError, match=r"^model\.config"):
        load_config(None, {**GOOD, name: value})


def test_a_good_config_is_built_as_given():
    config = load_config(None, {**GOOD, "num_key_value_heads": 1})
    assert (config.hidden_size, config.num_key_value_heads) == (16, 1)
    assert count_parameters(config) > 1024 * 16
