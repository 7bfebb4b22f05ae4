"""Interference and weight change: the numbers against independent ones, training untouched, several processes."""

import itertools

import numpy as np
import pytest
import torch
import yaml
from fitting import alike, losses, run, write_config, write_records
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from small import small_fit, small_mixture, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from sftlab.callbacks import heat_map
from sftlab.callbacks.interference import Interference, cosines
from sftlab.callbacks.layers import group_of, in_order
from sftlab.callbacks.metrics import JsonlLogger
from sftlab.callbacks.schedule import DMT, MultiTask
from sftlab.callbacks.weight_change import START, WeightChange
from sftlab.report.exhibit import Exhibit, files_in

PAIRS = ["math-code", "math-general", "code-general"]


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    return tmp_path


def independent_cosines(folder, data, num_examples):
    """By groups: conversations one by one, Hugging Face's own loss, autograd.grad, numpy."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    names, weights = zip(*model.named_parameters(), strict=True)
    vectors = {}
    for name, ability in data.abilities.items():
        table, held_out = ability.examples, ability.val_pool().index_N.tolist()
        chosen = [*held_out, *ability.pool(data.seed).index_N.tolist()][:num_examples]
        nll = 0.0
        for index in chosen:
            ids_T, mask_T = (torch.from_numpy(np.array(x)) for x in (table.ids(index), table.mask(index)))
            labels_T = torch.where(mask_T, ids_T.long(), -100)
            count = (labels_T[1:] != -100).sum()
            nll = nll + model(input_ids=ids_T.long()[None], labels=labels_T[None]).loss * count
        vectors[name] = [g.double().numpy().ravel() for g in torch.autograd.grad(nll, weights)]
    found = {}
    for a, b in itertools.combinations(vectors, 2):
        for group in {"all", *map(group_of, names)}:
            mine = [i for i, name in enumerate(names) if group in ("all", group_of(name))]
            x, y = (np.concatenate([vectors[ability][i] for i in mine]) for ability in (a, b))
            tag = f"interference/{a}-{b}" + ("" if group == "all" else f"/{group}")
            found[tag] = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    return found


def measured(lines, prefix="interference/"):
    """Values by step."""
    return {line["step"]: {k: v for k, v in line.items() if k != "step"} for line in lines if any(
        key.startswith(prefix) for key in line)}  # fmt: skip


class Keep(Callback):
    def on_stage_start(self, trainer, module, stage):
        if trainer.global_step == 0:
            self.weights = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}


def test_cosines_are_those_of_autograd_and_training_is_untouched(records):
    schedule = DMT(k=0.1, epochs=1, val_every_n_steps=2)
    plain, plain_lines = small_fit(records / "plain", schedule, small_mixture(records), accumulate_grad_batches=2)
    data, keep = small_mixture(records), Keep()
    looking = [Interference(every_n_steps=2, num_examples=12), WeightChange(), keep]
    model, lines = small_fit(records / "looked", schedule, data, *looking, accumulate_grad_batches=2)

    assert trained(lines) == trained(plain_lines)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))

    cosines, end = measured(lines), data.plan.num_steps
    assert sorted(cosines) == sorted({0, *range(2, end, 2), *data.plan.boundaries})
    for number, (step, stage) in enumerate(zip(data.plan.boundaries, ("specialised", "general"), strict=True)):
        folder = records / "looked" / "stages" / f"{number}-{stage}"
        wanted = independent_cosines(folder, data, 12)
        assert cosines[step] == pytest.approx(wanted, abs=1e-5)
        assert {f"interference/{pair}{group}" for pair in PAIRS for group in ("", "/embeddings", "/layer-01", "/head")
                } <= wanted.keys()  # fmt: skip
    assert len({round(value, 4) for value in cosines[end].values()}) > 6  # not all alike

    changes, inside = measured(lines, "weight_change/"), records / "looked" / "exhibits"
    before = keep.weights
    for number, (step, stage) in enumerate(zip(data.plan.boundaries, ("specialised", "general"), strict=True)):
        after = load_file(records / "looked" / "stages" / f"{number}-{stage}" / "model.safetensors")
        for group in ("all", "embeddings", "layer-00", "layer-01", "head"):
            names = [name for name in after if group in ("all", group_of(name))]
            moved, old = (torch.cat([x[n].flatten() for n in names]) for x in (after, before))
            norm = (moved - old).double().norm().item()
            assert changes[step][f"weight_change_norm/{stage}/{group}"] == pytest.approx(norm, rel=1e-6)
            assert changes[step][f"weight_change/{stage}/{group}"] == pytest.approx(norm / old.double().norm().item())
        before = after
    assert not (records / "looked" / START).exists()

    pictures = {"interference-0-specialised", "interference-1-general", "weight-change"}
    exhibits = {path: Exhibit.read(path) for path in files_in(inside)}
    assert {path.name.removesuffix(".exhibit.json") for path in exhibits} == pictures
    assert len(list(inside.iterdir())) == 2 * len(pictures)
    for exhibit in exhibits.values():
        (picture,) = exhibit.parts
        assert picture.title == exhibit.title and picture.caption
        assert picture.path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_in_tensorboard_or_a_text_without_matplotlib(records, monkeypatch):
    data, schedule = small_mixture(records), MultiTask(steps=1)
    for folder, missing in ((records / "drawn", False), (records / "told", True)):
        if missing:
            monkeypatch.setattr(heat_map, "find_spec", lambda name: None)
        loggers = [JsonlLogger(str(folder)), TensorBoardLogger(str(folder), name="", version="")]
        small_fit(folder, schedule, data, Interference(num_examples=2), WeightChange(), logger=loggers)
        events = EventAccumulator(str(folder))
        events.Reload()
        tags = events.Tags()
        assert "interference/math-code/layer-00" in tags["scalars"] and "weight_change/all/head" in tags["scalars"]
        shown = {"exhibits/interference-0-all", "exhibits/weight-change"}
        assert shown <= {tag.removesuffix("/text_summary") for tag in tags["tensors" if missing else "images"]}
        assert (folder / "exhibits").exists() != missing


def test_opposite_gradients_conflict_and_a_group_without_gradient_has_no_cosine():
    dots = {("head", "a", "a"): 4.0, ("head", "a", "b"): -2.0, ("head", "b", "b"): 1.0,
            ("layer-00", "a", "a"): 5.0, ("layer-00", "a", "b"): 0.0, ("layer-00", "b", "b"): 0.0}  # fmt: skip
    assert cosines(dots, ["a", "b"]) == pytest.approx({"interference/a-b": -2 / 3, "interference/a-b/head": -1})


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.model.embed_tokens.weight", "embeddings"), ("transformer.wpe.weight", "embeddings"),
        ("gpt_neox.embed_in.weight", "embeddings"), ("embed_out.weight", "head"), ("lm_head.weight", "head"),
        ("model.layers.3.self_attn.q_proj.weight", "layer-03"), ("transformer.h.11.attn.c_attn.bias", "layer-11"),
        ("model.norm.weight", "head"), ("transformer.word_embeddings.weight", "embeddings"),
    ],
)  # fmt: skip
def test_weights_belong_to_groups(name, group):
    assert group_of(name) == group


def test_groups_stand_from_input_to_output():
    assert in_order({"head", "layer-100", "layer-99", "all", "layer-02", "embeddings"}) == [
        "all", "embeddings", "layer-02", "layer-99", "layer-100", "head"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_processes_measure_the_same_and_a_resumed_run_goes_on(tmp_path):
    write_records(tmp_path)
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    looking = [{"class_path": "Interference", "init_args": {"every_n_steps": 1}}, {"class_path": "WeightChange"}]
    content["trainer"]["callbacks"] += looking
    content["schedule"]["init_args"] = {"steps": 2, "k": 0.1}
    content["model"]["config"]["attention_dropout"] = 0.0
    config.write_text(yaml.safe_dump(content))
    two = ["--trainer.devices", "2", "--trainer.strategy"]
    for name, more in (("one", []), ("ddp", [*two, "ddp"]), ("fsdp2", [*two, "fsdp2", "--trainer.max_steps", "3"])):
        run(tmp_path, "fit", "--config", config, "--run", name, *more)
    run(tmp_path, "fit", "--config", config, "--run", "fsdp2", "--ckpt_path", "last", "--trainer.strategy", "fsdp2")
    logs = tmp_path / "lightning_logs"
    seen = {name: losses(logs / name) for name in ("one", "ddp", "fsdp2")}
    assert sum("interference/code-math/layer-01" in dict(line) for line in seen["one"]) == 5
    assert sum("weight_change/general/all" in dict(line) for line in seen["one"]) == 1
    for name in ("ddp", "fsdp2"):
        for mine, theirs in zip(seen[name], seen["one"], strict=True):
            assert alike(mine, theirs), (mine, theirs)
        assert {path.name for path in (logs / name / "exhibits").iterdir()} == {
            path.name for path in (logs / "one" / "exhibits").iterdir()
        }
