"""Optimizers and learning rates of stages: who trains what, exact resume, one step whatever the micro-batches."""

import importlib.util
import json

import pytest
import torch
from fitting import write_records
from lightning.pytorch import Callback, Trainer
from small import MODEL, small_mixture

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.metrics import JsonlLogger, Metrics
from sftlab.callbacks.progress import model_line
from sftlab.callbacks.schedule import DMT, MultiTask
from sftlab.model.module import SFTModule
from sftlab.plan.rate import WSD, Linear

SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.1}}
EXTRAS = {"AdamWScheduleFree": "schedulefree", "AdamW8bit": "bitsandbytes"}
MISSING = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package) is None]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "5")
        write_records(folder)
        yield folder


def fit(records, folder, schedule, *callbacks, model=None, ckpt_path=None, **trainer):
    """Train; the module and the lines of the steps."""
    torch.manual_seed(1)
    given = {"config": MODEL, "learning_rate": 1e-2, **(model or {})}
    module = SFTModule(path=None, tokenizer="lab-base", attention="sdpa", **given)
    settings = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False,
                "num_sanity_val_steps": 0, "enable_checkpointing": False, **trainer}  # fmt: skip
    all_callbacks = [*callbacks, Metrics(every_n_steps=1), schedule]
    built = Trainer(logger=JsonlLogger(str(folder)), default_root_dir=folder, callbacks=all_callbacks, **settings)
    built.fit(module, datamodule=small_mixture(records), ckpt_path=ckpt_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("perf/", "stage/seconds")
    return module, [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def assert_resumes_everywhere(records, folder, schedule, steps, **model):
    """Train in one go, and again from its checkpoints: lines and weights are the same."""
    whole, lines = fit(records, folder / "whole", schedule(), RunCheckpoint(every_n_steps=1, keep_last=None),
                       model=model, enable_checkpointing=True)  # fmt: skip
    for step in steps:
        ckpt = next((folder / "whole" / "checkpoints").glob(f"step={step:06d}*"))
        again, more = fit(records, folder / f"from{step}", schedule(), model=model, ckpt_path=ckpt)
        assert [line for line in more if line["step"] > step] == [line for line in lines if line["step"] > step], step
        assert all(line in lines for line in more)  # a validation that the checkpoint came before is done again
        for name, weight in again.state_dict().items():
            assert torch.equal(weight, whole.state_dict()[name]), (step, name)


@pytest.mark.parametrize("name", ["SGD", "Muon", "AdamWScheduleFree", "AdamW8bit", "Adafactor", "Adagrad"])
def test_a_resumed_run_ends_in_the_same_weights_whatever_the_optimizer(records, tmp_path, name):
    if name in MISSING:
        pytest.skip(f"{EXTRAS[name]} is not installed")

    def schedule():
        return DMT(k=0.1, steps=4, val_every_n_steps=3)

    assert_resumes_everywhere(records, tmp_path, schedule, (1, 3, 4, 6), optimizer=name, lr_schedule=WSD(0.5))


def test_a_stage_may_have_an_optimizer_and_a_learning_rate_of_its_own(records, tmp_path):
    def schedule():
        own = {"optimizer": SGD, "lr_schedule": {"class_path": "Linear", "init_args": {"floor": 0.5}}, "steps": 3,
               "learning_rate": 0.5, "warmup_ratio": 0.0}  # fmt: skip
        return DMT(k=0.1, steps=4, per_stage={"general": own})

    assert_resumes_everywhere(records, tmp_path, schedule, (2, 4, 5), lr_schedule=Linear(), warmup_ratio=0.0)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/learning_rate"] for line in lines if "train/loss" in line]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.5, 0.5 * 5 / 6, 0.5 * 4 / 6])


def test_the_optimizer_of_a_stage_is_at_work_with_the_rate_of_the_step(records, tmp_path):
    seen = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            groups = trainer.optimizers[0].param_groups
            decays = {(p.ndim >= 2, group["weight_decay"]) for group in groups for p in group["params"]}
            seen.append((type(trainer.optimizers[0]).__name__, {group["lr"] for group in groups}, decays))
            if len(trainer.optimizers[0].state) == 0:
                seen.append("empty")

    schedule = DMT(k=0.1, steps=2, per_stage={"general": {"optimizer": SGD, "lr_schedule": "Constant"}})
    fit(records, tmp_path, schedule, Look(), model={"warmup_ratio": 0.0, "weight_decay": 0.2})
    names = [entry if entry == "empty" else entry[0] for entry in seen]
    assert names == ["AdamW", "empty", "AdamW", "SGD", "empty", "SGD"]
    kept = [entry for entry in seen if entry != "empty"]
    assert [entry[1] for entry in kept] == [{0.01}, {0.005}, {0.01}, {0.01}]
    assert kept[0][2] == {(True, 0.2), (False, 0.0)} and kept[-1][2] == {(True, 0.1), (False, 0.0)}


@pytest.mark.parametrize("name", ["SGD", "NAdam"])  # Muon's own arithmetic is bf16
def test_micro_batches_change_no_step(records, tmp_path, name):
    model = {"optimizer": name, "config": {**MODEL, "attention_dropout": 0.0}}
    runs = [fit(records, tmp_path / str(n), MultiTask(steps=3), model=model, accumulate_grad_batches=n) for n in (1, 3)]
    (one, _), (other, _) = runs
    for key, weight in one.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[key], atol=2e-5, rtol=1e-4)


def test_schedule_free_gives_and_trains_two_sets_of_weights(records, tmp_path):
    if "AdamWScheduleFree" in MISSING:
        pytest.skip("schedulefree is not installed")
    modes = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            modes.append(("step", trainer.optimizers[0].param_groups[0]["train_mode"]))

        def on_validation_start(self, trainer, *_):
            modes.append(("validation", trainer.optimizers[0].param_groups[0]["train_mode"]))

        def on_stage_end(self, trainer, *_):
            modes.append(("end", trainer.optimizers[0].param_groups[0]["train_mode"]))

    schedule = MultiTask(steps=4, val_every_n_steps=2)
    fit(records, tmp_path, schedule, Look(), model={"optimizer": "AdamWScheduleFree"})
    assert set(modes) == {("step", True), ("validation", False), ("end", False)}


def test_carried_state_of_another_optimizer_is_refused(records, tmp_path):
    own = {"optimizer": "SGD", "fresh_optimizer": False}
    with pytest.raises(ValueError, match="fresh_optimizer: true"):
        fit(records, tmp_path, DMT(k=0.1, steps=2, per_stage={"general": own}))


def test_noise_smoothing_and_frozen_weights_resume_to_the_same_weights(records, tmp_path):
    def schedule():
        return DMT(k=0.1, steps=3)

    given = {"neftune_alpha": 5.0, "label_smoothing": 0.1, "frozen": ["model.embed_tokens", "*.0.self_attn"]}
    assert_resumes_everywhere(records, tmp_path, schedule, (2, 4), **given)


def test_noise_and_smoothing_are_the_same_for_any_micro_batches_and_noise_is_of_training_alone(records, tmp_path):
    model = {"neftune_alpha": 20.0, "label_smoothing": 0.1, "config": {**MODEL, "attention_dropout": 0.0}}
    seen = {}
    for name, accumulate, changes in (("one", 1, {}), ("three", 3, {}), ("plain", 1, {"neftune_alpha": 0.0})):
        settings = {**model, **changes}
        _, lines = fit(records, tmp_path / name, MultiTask(steps=2), model=settings, accumulate_grad_batches=accumulate)
        seen[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert seen["one"] == pytest.approx(seen["three"], rel=1e-5)
    assert abs(seen["one"][0] - seen["plain"][0]) > 1e-4


def test_frozen_weights_stay_and_are_counted(records, tmp_path):
    seen = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen["before"] = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
            seen["line"] = model_line(trainer, module)

    module, _ = fit(records, tmp_path, MultiTask(steps=2), Look(), model={"frozen": ["model.layers"]})
    changed = {name for name, p in module.backbone.named_parameters() if not torch.equal(p, seen["before"][name])}
    assert changed == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    held = sum(p.numel() for name, p in module.backbone.named_parameters() if ".layers." in name) / 1e6
    assert f"{held:,.3g}M frozen" in seen["line"]
