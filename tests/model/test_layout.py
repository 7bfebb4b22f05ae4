"""Weights written one at a time: the bytes that transformers writes, in files of a size, and never many at once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from sftlab.model.layout import Layout
from sftlab.model.weights import WeightFiles, Weights, copy, of_files, size_in_bytes

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
CONFIGS = {
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "turned": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16),
    "experts": MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3),
}


def empty(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_files_are_those_of_transformers_byte_by_byte(name, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    model.save_pretrained(tmp_path / "theirs")
    weights, taken = Weights.of(model.state_dict()), []
    (tmp_path / "ours").mkdir()
    Layout(empty(CONFIGS[name]), weights.shapes).write(
        tmp_path / "ours", lambda name: (taken.append(name), weights.take(name))[1]
    )
    theirs, ours = ({p.name: p.read_bytes() for p in (tmp_path / place).glob("*.safetensors")}
                    for place in ("theirs", "ours"))  # fmt: skip
    assert ours == theirs
    assert len(taken) == len(set(taken)), "each weight is taken once"


def test_weights_that_are_not_the_architectures_are_refused(tmp_path):
    shapes = dict(empty(CONFIGS["untied"]).state_dict())
    missing = {name: shape for name, shape in shapes.items() if "0.mlp.up" not in name}
    for given, said in (
        (missing, "missing: .*up_proj"),
        ({**shapes, "model.odd": torch.zeros(1)}, "unknown: .*model.odd"),
        ({**shapes, "lm_head.weight": torch.zeros(2, 2)}, r"lm_head.weight has the shape \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            Layout(empty(CONFIGS["untied"]), given)
    tied = dict(empty(CONFIGS["tied"]).state_dict())
    Layout(empty(CONFIGS["tied"]), {name: shape for name, shape in tied.items() if name != "model.embed_tokens.weight"})


def test_files_of_a_size_have_an_index_and_hold_every_type(tmp_path):
    tensors = {
        "wide": torch.randn(7, 5), "half": torch.randn(3).half(), "b": torch.randn(2, 2).bfloat16(),
        "count": torch.tensor(3), "flag": torch.tensor([True]), "none": torch.zeros(0, 4), "ä": torch.ones(1),
    }  # fmt: skip
    weights = Weights.of(tensors)
    for place, most in (("one", 10**6), ("some", 20)):
        (tmp_path / place).mkdir()
        copy(weights, WeightFiles(tmp_path / place, weights.shapes, most, metadata={"format": "pt"}))
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    places = json.loads((tmp_path / "some" / "model.safetensors.index.json").read_text())["weight_map"]
    assert places.keys() == tensors.keys() and len(set(places.values())) > 2
    for name, file in places.items():
        assert torch.equal(load_file(tmp_path / "some" / file)[name], tensors[name])
    assert size_in_bytes("5GB") == 5 * 10**9


def test_weights_of_files_are_read_when_they_are_taken(tmp_path):
    from contextlib import ExitStack

    save_file({"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.int64)}, tmp_path / "x.safetensors")
    with ExitStack() as stack:
        weights = of_files([tmp_path / "x.safetensors"], stack).to(torch.bfloat16)
        assert weights.shapes["a"].is_meta and weights.shapes["a"].dtype is torch.bfloat16
        assert weights.take("a").dtype is torch.bfloat16 and weights.take("b").dtype is torch.int64
