"""Architectures from keyword arguments, told before training where none can be built; models of the hub by revision."""

from contextlib import ExitStack

import pytest
import transformers

from sftlab import SFTModule
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.backbone import count_parameters, hub_name, load_config, load_model, load_tokenizer
from sftlab.run.identity import weights_hash
from sftlab.run.opening import model_folder

GOOD = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0), ("hidden_size", -16), ("hidden_size", [16, 16]), ("hidden_size", "x"), ("hidden_size", 17),
        ("num_hidden_layers", [1, [1]]), ("num_hidden_layers", -1), ("num_attention_heads", 0),
        ("num_attention_heads", 32),
        ("vocab_size", -3), ("intermediate_size", 0), ("num_key_value_heads", 3), ("head_dim", 3), ("rope_theta", "x"),
        ("rope_scaling", {"type": "none of it"}), ("hidden_act", "none of it"), ("pad_token_id", 99999), ("dtype", "x"),
        ("attention_dropout", 5.0), ("attention_dropout", -0.1), ("attention_dropout", float("nan")),
    ],
)  # fmt: skip
def test_what_no_model_can_be_built_of_is_one_message(name, value):
    with pytest.raises(ValueError, match=r"^model\.config"):
        load_config(None, {**GOOD, name: value})


def test_a_folder_whose_layers_cannot_drop_so_much_is_told_before_training(tmp_path):
    transformers.LlamaConfig(**GOOD, attention_dropout=5.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json of .*attention_dropout: 5\.0 must be between 0 and 1"):
        load_config(str(tmp_path), None)


def test_a_good_config_is_built_as_given():
    config = load_config(None, {**GOOD, "num_key_value_heads": 1})
    assert (config.hidden_size, config.num_key_value_heads) == (16, 1)
    assert count_parameters(config) > 1024 * 16


def test_a_hub_id_may_name_a_branch_tag_or_commit_and_a_folder_stays_one(tmp_path, monkeypatch):
    assert hub_name("me/mine@v1.2") == ("me/mine", "v1.2")
    assert hub_name("mine@refs/pr/3") == ("mine", "refs/pr/3")
    assert hub_name("me/mine") == ("me/mine", None)
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert hub_name(str(folder)) == (str(folder), None)
    for wrong in ("me/mine@", "me/mine@ ", "/a/b/c@main", "me/mine@../x", "https://h/m@main", "@main"):
        with pytest.raises(ValueError, match="a hub id is written"):
            hub_name(wrong)
    with ExitStack() as stack:
        assert model_folder("me/mine@v1.2", stack) == "me/mine@v1.2"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/nothing@v1\.2'"):
        load_config("nobody/nothing@v1.2", None)


def test_config_weights_and_tokenizer_come_of_the_revision(monkeypatch):
    asked = {}

    def stub(kind, answer):
        def from_pretrained(name, **options):
            asked[kind] = (name, options.get("revision"))
            return answer

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", from_pretrained)

    config = transformers.LlamaConfig()
    config._commit_hash = "c0ffee"
    stub("AutoConfig", config)
    stub("AutoTokenizer", lab_tokenizer())
    stub("AutoModelForCausalLM", ("the model", {"missing_keys": []}))
    load_tokenizer.cache_clear()
    load_config("me/mine@v1.2", None)
    load_tokenizer("me/mine@v1.2")
    assert load_model("me/mine@v1.2", None, None) == "the model"
    assert asked == dict.fromkeys(asked, ("me/mine", "v1.2")) and len(asked) == 3
    load_config("me/mine", None)
    assert asked["AutoConfig"] == ("me/mine", None)
    # What is trained from is its commit, however it was asked for.
    assert weights_hash(SFTModule("me/mine@v1.2")) == weights_hash(SFTModule("me/mine")) == "me/mine@c0ffee"
    load_tokenizer.cache_clear()
