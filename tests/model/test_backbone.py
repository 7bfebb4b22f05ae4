"""Architectures from keyword arguments, told before training where none can be built; models of the hub by revision."""

import json
from contextlib import ExitStack

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sftlab import SFTModule
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model import loading
from sftlab.model.backbone import count_parameters, generation_ends, hub_name, load_config, load_model, load_tokenizer
from sftlab.model.export import empty_from, write_merged
from sftlab.model.layout import Layout
from sftlab.model.weights import Weights
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
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**GOOD))
    stub("AutoModelForCausalLM", (model, {"missing_keys": [], "unexpected_keys": []}))
    load_tokenizer.cache_clear()
    load_config("me/mine@v1.2", None)
    load_tokenizer("me/mine@v1.2")
    assert load_model("me/mine@v1.2", None, None) is model
    assert asked == dict.fromkeys(asked, ("me/mine", "v1.2")) and len(asked) == 3
    load_config("me/mine", None)
    assert asked["AutoConfig"] == ("me/mine", None)
    # What is trained from is its commit, however it was asked for.
    assert weights_hash(SFTModule("me/mine@v1.2")) == weights_hash(SFTModule("me/mine")) == "me/mine@c0ffee"
    load_tokenizer.cache_clear()


def saved(folder, name, tie):
    """A small LLaMA's folder, and the weights in it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**GOOD, "vocab_size": 64}, intermediate_size=32, tie_word_embeddings=tie)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return load_file(folder / name / "model.safetensors")


def adapter(folder, base, layers=("model.layers.0.self_attn.q_proj",), r=4, size=16, **config):
    """A folder of PEFT beside its base; what it adds to each weight."""
    weights, added = {}, {}
    for layer in layers:
        a, b = torch.randn(r, size), torch.randn(64 if layer == "lm_head" else 16, r)
        weights |= {f"base_model.model.{layer}.lora_A.weight": a, f"base_model.model.{layer}.lora_B.weight": b}
        added[f"{layer}.weight"] = b @ a * 8 / r
    given = {"peft_type": "LORA", "base_model_name_or_path": str(folder / base), "r": r, "lora_alpha": 8, **config}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(given))
    save_file(weights, folder / "adapter" / "adapter_model.safetensors")
    return added


def load(folder):
    return load_model(str(folder), None, torch.float32)


def test_a_head_of_its_own_stays_one_whatever_the_config_says(tmp_path):
    saved(tmp_path, "base", tie=False)
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    weights = load_file(tmp_path / "base" / "model.safetensors")
    model = load(tmp_path / "base")
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"]) and not model.config.tie_word_embeddings
    assert loading.shell(str(tmp_path / "base"), None, torch.float32) is None, "sharded it is loaded whole"
    model.config.save_pretrained(tmp_path / "architecture")
    (tmp_path / "exported").mkdir()
    held = Weights.of(model.state_dict())
    Layout(empty_from(tmp_path / "architecture"), held.shapes).write(tmp_path / "exported", held.take)
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == weights.keys() and torch.equal(exported["lm_head.weight"], weights["lm_head.weight"])
    added = adapter(tmp_path, "base")
    write_merged(tmp_path / "merged", tmp_path / "adapter")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.allclose(merged[name], one + added.get(name, 0)) for name, one in weights.items())


def test_a_copy_of_the_embedding_in_the_files_is_still_tied(tmp_path):
    weights = saved(tmp_path, "base", tie=True)
    copied = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(copied, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    model = load(tmp_path / "base")
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings
    assert loading.shell(str(tmp_path / "base"), None, torch.float32) is not None


@pytest.mark.parametrize("tie", [True, False])
def test_an_adapter_of_the_head_leaves_the_embedding_as_it_is(tmp_path, tie):
    weights = saved(tmp_path, "base", tie)
    head = weights["model.embed_tokens.weight" if tie else "lm_head.weight"]
    added = adapter(tmp_path, "base", ["lm_head"])
    write_merged(tmp_path / "merged", tmp_path / "adapter")
    for model in (load(tmp_path / "adapter"), load(tmp_path / "merged")):
        torch.testing.assert_close(model.lm_head.weight, head + added["lm_head.weight"])
        assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("init_lora_weights", kind) for kind in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")),
        ("alora_invocation_tokens", [1, 2]), ("use_dora", True), ("use_rslora", True), ("arrow_config", {"top_k": 2}),
        ("ensure_weight_tying", True), ("use_something_new", True), ("rank_pattern", {"q_proj": 8}),
    ],
)  # fmt: skip
def test_an_adapter_that_is_more_than_a_product_on_its_base_is_refused(tmp_path, key, value):
    saved(tmp_path, "base", tie=False)
    adapter(tmp_path, "base", **{key: value})
    with pytest.raises(ValueError, match=rf"describes no plain LoRA \({key}\): merge it with PEFT first"):
        load(tmp_path / "adapter")


def test_an_adapter_with_all_that_peft_notes_of_plain_lora_is_added(tmp_path):
    weights = saved(tmp_path, "base", tie=False)
    noted = peft.LoraConfig(init_lora_weights="gaussian", task_type="CAUSAL_LM").to_dict()
    own = ("base_model_name_or_path", "r", "lora_alpha")
    added = adapter(tmp_path, "base", **{key: value for key, value in noted.items() if key not in own})
    made = load(tmp_path / "adapter").state_dict()
    assert all(torch.allclose(one, weights[name] + added.get(name, 0)) for name, one in made.items())


def test_an_adapter_that_is_not_whole_or_of_another_base_is_told(tmp_path):
    saved(tmp_path, "base", tie=False)
    adapter(tmp_path, "base")
    file, config = (tmp_path / "adapter" / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    whole = load_file(file)
    lacking = {name: one for name, one in whole.items() if "lora_A" in name}
    narrow = {name: one[:, :1].clone() if "lora_A" in name else one for name, one in whole.items()}
    for weights, said in ((lacking, "has no lora_B beside it"), (narrow, r"another base: its change is \(16, 1\)")):
        save_file(weights, file)
        with pytest.raises(ValueError, match=said):
            load(tmp_path / "adapter")
    save_file(whole, file)
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(ValueError, match=r"is \(4, 16\), r is 8"):
        load(tmp_path / "adapter")


def test_an_adapter_ends_generation_where_its_base_does(tmp_path):
    saved(tmp_path, "base", tie=False)
    transformers.GenerationConfig(eos_token_id=[3, 7]).save_pretrained(tmp_path / "base")
    adapter(tmp_path, "base")
    assert generation_ends(str(tmp_path / "adapter")) == [3, 7]


def test_an_architecture_without_a_causal_language_model_is_told_before_weights_are_loaded(tmp_path):
    transformers.T5Config(vocab_size=16, d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a t5, of which there is no causal language model"):
        load_config(str(tmp_path), None)
