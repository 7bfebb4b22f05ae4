"""Weights of a model's files that have no place in it are told in our words; weights that it lacks are refused."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from sftlab.model import loading
from sftlab.model.backbone import load_model

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 32}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def log():
    """What transformers would print."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def set_layers(folder, number):
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = number
    config.save_pretrained(folder)


def add_weights(folder, *names):
    weights = load_file(folder / "model.safetensors")
    extra = {name: torch.zeros(2) for name in names}
    save_file({**weights, **extra}, folder / "model.safetensors", {"format": "pt"})


def notes(capsys):
    """What we said; transformers has a progress bar."""
    return [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line and line]


def whole(folder):
    load_model(str(folder), None, torch.float32)


def shard_by_shard(folder):
    assert loading.shell(str(folder), None, torch.float32) is not None


@pytest.mark.parametrize("load", [whole, shard_by_shard])
def test_layers_that_a_config_leaves_out_are_told_in_one_line(folder, capsys, log, load):
    set_layers(folder, 1)
    load(folder)
    (line,) = notes(capsys)
    assert f"{str(folder)!r} holds 18 weights that its architecture has no place for" in line
    assert "model.layers.1, model.layers.2; does num_hidden_layers" in line
    assert not log
    load(folder)
    assert not notes(capsys), "it was told"


@pytest.mark.parametrize("load", [whole, shard_by_shard])
def test_weights_of_another_model_are_named_and_counted(folder, capsys, load):
    add_weights(folder, *(f"score_{number}.weight" for number in range(6)))
    load(folder)
    (said,) = notes(capsys)
    assert "holds 6 weights" in said and "score_0.weight, score_1.weight" in said and "and 2 more" in said
    assert "num_hidden_layers" not in said


@pytest.mark.parametrize("load", [whole, shard_by_shard])
def test_nothing_is_said_of_a_tied_head_and_of_what_old_versions_saved_too(folder, capsys, log, load):
    add_weights(folder, "model.layers.0.self_attn.rotary_emb.inv_freq")
    weights = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file({**weights, **head}, folder / "model.safetensors", {"format": "pt"})
    load(folder)
    assert not notes(capsys) and not log


def test_weights_that_would_be_drawn_at_random_are_refused(folder, capsys, log):
    set_layers(folder, 4)
    with pytest.raises(
        ValueError, match=r"no weights for model\.layers\.3\..* and 8 others, which would be drawn at random"
    ):
        whole(folder)
    assert loading.shell(str(folder), None, torch.float32) is None, "it is loaded whole, and refused there"
    assert not log and not notes(capsys)


def test_files_beside_the_weights_are_not_among_them(folder, capsys):
    save_file({"layers.0.wq": torch.zeros(2)}, folder / "consolidated.safetensors", {"format": "pt"})
    _, files = loading.shell(str(folder), None, torch.float32)
    assert [file.name for file in files] == ["model.safetensors"] and not notes(capsys)
