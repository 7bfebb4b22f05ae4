"""Limits of an architecture are told with both numbers, from the config alone."""

import pytest
from tiny import tiny

from sftlab.data.ability import GeneralData
from sftlab.data.mixture import MixtureData
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.limits import has_position_table, limit_problems


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    made = MixtureData({"general": GeneralData(num_examples=30)}, template="vicuna_short", max_length=512)
    made.load(lab_tokenizer())
    return made


def config(name, data, **more):
    return tiny(name, **{"vocab_size": len(lab_tokenizer()), **more}).config


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj", "codegen", "gpt_bigcode", "gpt_neo"])
def test_examples_beyond_positions_in_a_table_are_refused(name, data):
    longest = int(data.abilities["general"].examples.lengths_N.max())
    key = "max_position_embeddings" if name in ("opt", "gpt_neo") else "n_positions"
    with pytest.raises(ValueError, match=f"{longest} tokens lies beyond the {longest - 1} positions that {name}"):
        limit_problems(config(name, data, **{key: longest - 1}), lab_tokenizer(), data)
    assert limit_problems(config(name, data, **{key: longest}), lab_tokenizer(), data) == []


def test_rotary_positions_beyond_what_was_learned_are_told_and_trained(data):
    [said] = limit_problems(config("llama", data, max_position_embeddings=16), lab_tokenizer(), data)
    assert "made for 16 positions" in said
    assert not has_position_table(config("llama", data), 128) and not has_position_table(config("mistral", data), 128)
    assert limit_problems(config("mamba", data), lab_tokenizer(), data) == []


def test_token_ids_beyond_the_embedding_are_refused_and_unused_ones_told(data):
    largest = data.abilities["general"].examples.largest_id
    with pytest.raises(ValueError, match=rf"token id {largest:,} .* embedding of {largest:,} tokens"):
        limit_problems(config("llama", data, vocab_size=largest, max_position_embeddings=512), lab_tokenizer(), data)
    more = config("llama", data, vocab_size=largest + 1, max_position_embeddings=512)
    said = limit_problems(more, lab_tokenizer(), data)
    assert len(said) == (largest + 1 < len(lab_tokenizer()))
    assert all(f"embedding {largest + 1:,}" in one for one in said)
