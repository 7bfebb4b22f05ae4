"""LoRA: what is trained, exact resume, stages with one adapter or one each, export as adapter and merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fitting import alike, losses, run, write_config, write_records
from lightning.pytorch import Trainer
from peft import PeftModel
from safetensors.torch import load_file
from small import small_mixture
from tiny import tiny
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sftlab.callbacks.metrics import JsonlLogger, Metrics
from sftlab.callbacks.schedule import DMT
from sftlab.commands.export import export
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.adapter import LiveAdapter, LoRA
from sftlab.model.backbone import content_hash, load_model
from sftlab.model.contents import contents
from sftlab.model.module import SFTModule
from sftlab.model.parallel import decoder_layers
from sftlab.model.unadapted import unadapted
from sftlab.run.identity import stage_keys
from sftlab.run.settings import Settings

IDS = torch.arange(3, 40)[None]


def write_base(folder: Path, seed: int = 0) -> Path:
    """A pretrained LLaMA of two layers, tied embeddings."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=1024, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    lab_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "5")
        write_records(folder)
        write_base(folder / "base")
        yield folder


def fit(inputs: Path, name: str, adapter: LoRA | None, resume: Path | None = None, **trainer) -> tuple[Path, SFTModule]:
    """A DMT run; its folder and its module."""
    torch.manual_seed(1)
    module = SFTModule(str(inputs / "base"), learning_rate=1e-2, adapter=adapter, attention="sdpa")
    folder = inputs / name
    built = Trainer(
        callbacks=[Metrics(every_n_steps=1), DMT(k=0.25, epochs=1)], logger=JsonlLogger(str(folder)), accelerator="cpu",
        devices=1, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=False, default_root_dir=folder, **trainer,
    )  # fmt: skip
    built.fit(module, datamodule=small_mixture(inputs), ckpt_path=resume)
    return folder, module


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


def checkpoint(folder: Path, words: str) -> Path:
    return next(path for path in sorted((folder / "checkpoints").glob("*.ckpt")) if words in path.name)


@pytest.fixture(scope="module")
def carried(inputs):
    return fit(inputs, "carried", LoRA(r=4, alpha=8, dropout=0.1))


@pytest.fixture(scope="module")
def merged(inputs):
    return fit(inputs, "merged", LoRA(r=4, alpha=8, dropout=0.1, stages="merged"))


def test_only_the_adapter_is_trained_and_kept(inputs, carried):
    folder, module = carried
    base = LlamaForCausalLM.from_pretrained(inputs / "base").state_dict()
    now = module.backbone.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in base.items())
    kept = contents(checkpoint(folder, "general")).weights
    assert len(kept) == 2 * 2 * 7 and all("lora_" in name for name in kept)
    assert contents(checkpoint(folder, "general")).entries["adapter"]["base"] == content_hash(
        str(inputs / "base"), None
    )


@pytest.mark.parametrize(("name", "cuts"), [("carried", [-3]), ("merged", [0, 2])])
def test_a_run_cut_in_either_stage_ends_in_the_same_weights(name, cuts, inputs, request):
    folder, module = request.getfixturevalue(name)
    adapter = LoRA(r=4, alpha=8, dropout=0.1, stages=name)
    whole = [line for line in losses(folder) if "train/loss" in dict(line)]
    boundary = int(checkpoint(folder, "specialised").name[5:11])
    for cut in cuts:
        part, _ = fit(inputs, f"{name}-cut", adapter, max_steps=boundary + cut)
        path = max((part / "checkpoints").glob("*.ckpt"))
        _, resumed = fit(inputs, f"{name}-cut", adapter, resume=path)
        assert [line for line in losses(part) if "train/loss" in dict(line)] == whole
        mine, theirs = resumed.backbone.state_dict(), module.backbone.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        shutil.rmtree(part)


def test_merged_equals_the_adapter_in_transformers_in_peft_and_here(inputs, carried, tmp_path):
    folder, module = carried
    stage = folder / "stages" / "1-general"
    assert not (stage / "model.safetensors").exists()
    whole = tmp_path / "whole"
    export(str(stage), str(whole), merge=True)
    peft = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(inputs / "base"), stage)
    with torch.no_grad():
        live = module.eval().backbone(IDS).logits
        by_peft = peft(IDS).logits
    base = logits(inputs / "base")
    assert (live - base).abs().max() > 0.1
    for other in (by_peft, logits(stage), logits(whole)):
        torch.testing.assert_close(other, live, atol=1e-5, rtol=1e-5)
    ours, exported = load_model(str(stage), None, torch.float32), load_file(whole / "model.safetensors")
    assert all(torch.equal(ours.state_dict()[name], weight) for name, weight in exported.items())
    load_model(str(stage), None, torch.float32).save_pretrained(tmp_path / "at-once")
    for name in ("model.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()
    again = tmp_path / "again"
    export(str(checkpoint(folder, "general")), str(again), merge=True)
    assert all(torch.equal(exported[name], weight) for name, weight in load_file(again / "model.safetensors").items())


def test_an_adapter_each_joins_the_weights_at_the_boundary(inputs, carried, merged):
    folder, module = merged
    first, second = folder / "stages" / "0-specialised", folder / "stages" / "1-general"
    assert (first / "adapter_model.safetensors").exists() and (second / "model.safetensors").exists()
    same = [load_file(f / "stages" / "0-specialised" / "adapter_model.safetensors") for f in (folder, carried[0])]
    assert all(torch.equal(same[0][name], weight) for name, weight in same[1].items())
    start = load_model(str(first), None, torch.float32).state_dict()
    now = module.backbone.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in start.items())  # stage 2 trained an adapter alone
    with torch.no_grad():
        torch.testing.assert_close(logits(second), module.eval().backbone(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_stage_without_adapter_trains_all_weights(inputs, carried):
    folder, module = fit(inputs, "off", LoRA(r=4, alpha=8, dropout=0.1, stages={"general": "off"}))
    start = load_model(str(folder / "stages" / "0-specialised"), None, torch.float32).state_dict()
    now = load_file(folder / "stages" / "1-general" / "model.safetensors")
    assert all(not torch.equal(start[name], weight) for name, weight in now.items())
    assert all(not b.any() for name, b in module.backbone.state_dict().items() if "lora_B" in name)
    part, _ = fit(inputs, "off-cut", LoRA(r=4, alpha=8, dropout=0.1, stages={"general": "off"}), max_steps=8)
    fit(inputs, "off-cut", module.adapter, resume=max((part / "checkpoints").glob("*.ckpt")))
    again = load_file(part / "stages" / "1-general" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in now.items())


def test_keys_of_stages_are_those_of_before_without_an_adapter_and_shared_where_weights_are(inputs):
    def keys(adapter):
        module = SFTModule(str(inputs / "base"), adapter=adapter)
        data, schedule = small_mixture(inputs), DMT(k=0.25, epochs=1)
        plan = schedule.compile(data, module)
        return [key.trained for key in stage_keys(data, module, plan, Settings.of_arguments({}, 1, [schedule]))]

    carried, merged, off = (keys(LoRA(stages={"specialised": mode})) for mode in ("carried", "merged", "off"))
    assert carried[0] == merged[0] != off[0] and carried[1] != merged[1]
    assert keys(LoRA(r=8))[0] != carried[0] == keys(LoRA())[0] != keys(None)[0]


def test_a_base_that_has_changed_is_told(inputs, carried, tmp_path):
    stage = tmp_path / "stage"
    shutil.copytree(carried[0] / "stages" / "1-general", stage)
    config = json.loads((stage / "adapter_config.json").read_text())
    for base, said in ((write_base(tmp_path / "other", 1), "has changed"), (tmp_path / "gone", "is not there")):
        (stage / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        with pytest.raises(ValueError, match=said):
            load_model(str(stage), None, torch.float32)
    (stage / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ValueError, match="no plain LoRA"):
        load_model(str(stage), None, torch.float32)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: LoRA(r=0), "r"),
        (lambda: LoRA(stages="on"), "'on' is not one of carried, merged, off"),
        (lambda: LoRA(stages="merged", quantise="nf4"), "4 bits cannot be changed"),
        (lambda: SFTModule("x", adapter=LoRA(stages={"x": "off"})).adapter.check(["all"]), "no stage named"),
    ],
)
def test_options_that_make_no_sense_are_told(made, said):
    with pytest.raises(ValueError, match=said):
        made()


def test_layers_that_are_not_there_and_missing_gpus_are_told(inputs):
    with pytest.raises(ValueError, match=r"the blocks have no linear layer .'query'.; they have down_proj"):
        SFTModule(str(inputs / "base"), adapter=LoRA(target_modules=["query"])).configure_model()
    with pytest.raises(ValueError, match="4 bits need"):
        SFTModule(str(inputs / "base"), adapter=LoRA(quantise="nf4")).configure_model()


def test_layers_whose_weights_are_turned_merge_too():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).eval()
    live = LiveAdapter(LoRA(r=3), model, decoder_layers(model), 1, "x")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
        trained = model(ids).logits
        live.merge()
        live.start("next")
        torch.testing.assert_close(model(ids).logits, trained, atol=1e-4, rtol=1e-4)
    assert (trained - before).abs().max() > 0.1


@pytest.mark.slow
def test_two_sharded_processes_train_the_same_adapter(inputs, tmp_path):
    write_records(tmp_path)
    shutil.copytree(inputs / "base", tmp_path / "base")
    model = {"path": "base", "attention": "sdpa", "learning_rate": 1e-2,
             "adapter": {"class_path": "LoRA", "init_args": {"r": 4, "stages": "merged"}}}  # fmt: skip
    config = write_config(tmp_path, model=model, **{"schedule/init_args/epochs": 1})
    run(tmp_path, "fit", "--config", config, "--run", "one")
    sharded = ["--trainer.strategy", "fsdp2", "--trainer.devices"]
    run(tmp_path, "fit", "--config", config, "--run", "two", *sharded, "2", "--trainer.max_steps", "14")
    run(tmp_path, "fit", "--config", config, "--run", "two", *sharded, "1", "--ckpt_path", "last")
    logs = tmp_path / "lightning_logs"
    for mine, theirs in zip(losses(logs / "two"), losses(logs / "one"), strict=True):
        assert alike(mine, theirs), (mine, theirs)
    torch.testing.assert_close(logits(logs / "two/stages/1-general"), logits(logs / "one/stages/1-general"),
                               atol=1e-3, rtol=1e-3)  # fmt: skip


def test_weights_that_belong_to_no_linear_layer_are_told_with_their_share():
    model = tiny("mixtral")
    blocks = dict(decoder_layers(model).named_parameters())
    experts = sum(weight.numel() for name, weight in blocks.items() if ".experts." in name or ".gate." in name)
    share = experts / sum(weight.numel() for weight in blocks.values())
    (note,) = unadapted(model.config, LoRA())
    assert f"{share:.0%} of the blocks' weights" in note and "mlp.experts.gate_up_proj, mlp.experts.down_proj" in note
    live = LiveAdapter(LoRA(), model, decoder_layers(model), 0, "")
    assert not any("experts" in name for name, _ in live.layers())
    assert unadapted(model.config, LoRA(target_modules=["q_proj"])) == unadapted(model.config, None) == []
    assert unadapted(tiny("llama").config, LoRA()) == unadapted(tiny("gpt2").config, LoRA()) == []
