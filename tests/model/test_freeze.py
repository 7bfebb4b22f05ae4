"""Freezing by patterns: exactly what they name, and a message for those that name nothing."""

import pytest
import torch
from tiny import tiny

from sftlab.model.freeze import freeze
from sftlab.model.optim import build_optimizer


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["model.embed_tokens"], {"model.embed_tokens.weight"}),
        (["model.norm.weight", "lm_head"], {"model.norm.weight", "lm_head.weight"}),
        (
            ["*layernorm*"],
            {f"model.layers.{i}.{n}_layernorm.weight" for i in (0, 1) for n in ("input", "post_attention")},
        ),
    ],
)
def test_what_a_pattern_names_is_frozen_and_takes_no_optimizer_state(patterns, frozen):
    model = tiny("llama")
    freeze(model, patterns)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    optimizer = build_optimizer(model, None, 0.0, (0.9, 0.999))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if name not in frozen}


def test_a_module_is_frozen_with_all_that_it_holds_and_a_number_is_not_the_start_of_another():
    model = tiny("llama", num_hidden_layers=12)
    freeze(model, ["model.layers.1", "model.layers.[2-3]"])
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"1", "2", "3"}


def test_a_tied_head_is_frozen_by_either_name():
    model = tiny("llama", tie_word_embeddings=True)
    freeze(model, ["lm_head"])
    assert not model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (
            ["model.embed_token"],
            r"model\.frozen: 'model\.embed_token' matches no weights.*did you mean model\.embed_tokens",
        ),
        (["lm_head", "layers.0"], r"'layers\.0' matches no weights.*did you mean"),
        (["*"], "leave nothing to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_told(patterns, said):
    with torch.device("meta"):
        model = tiny("llama")
    with pytest.raises(ValueError, match=said):
        freeze(model, patterns)
