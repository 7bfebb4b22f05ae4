"""keep_best: a stage ends with the weights of its best validation, and what that costs is told."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from small import small_fit, small_mixture
from transformers import AutoModelForCausalLM

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import MultiTask, Stages
from sftlab.plan.stage import Stage
from sftlab.run.results import losses_by_stage


class Remember(Callback):
    """Weights after every step."""

    changes_training = False

    def __init__(self, die_at=None):
        self.weights, self.die_at = {}, die_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]
        if trainer.global_step == self.die_at:
            raise RuntimeError("killed")


def two_stages(**options):
    """The rate of the first rises to its end, until it is too high: general gets worse."""
    first = Stage("math", {"math": 1.0}, steps=5, learning_rate=0.3, warmup_ratio=0.9)
    return Stages([first, Stage("code", {"code": 1.0}, steps=2, learning_rate=5e-3)], val_every_n_steps=1, **options)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def exported(folder, name):
    return AutoModelForCausalLM.from_pretrained(folder / "stages" / name, dtype=torch.float32)


def test_each_stage_ends_with_its_best_weights_and_the_next_goes_on_from_them(records, capsys):
    folder, seen = records / "run", Remember()
    module, lines = small_fit(folder, two_stages(keep_best="general"), small_mixture(records), seen)
    losses = {line["step"]: line["val/loss/general"] for line in lines if "val/loss/general" in line}
    kept = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    assert [one["stage"] for one in kept] == ["math", "code"]
    for one, steps in zip(kept, [(1, 2, 3, 4, 5), (6, 7)], strict=True):
        best = min(steps, key=lambda step: losses[step])
        assert one["step"] == best and one["val_loss"]["general"] == losses[best]
        assert one["val_loss_at_end"]["general"] == losses[steps[-1]]
    assert kept[0]["step"] < 5, "the case must have a best step inside the stage"
    assert losses_by_stage(folder) == {one["stage"]: one["val_loss"] for one in kept}
    names = dict(module.backbone.named_parameters())
    for name, value in exported(folder, "0-math").named_parameters():
        index = list(names).index(name)
        assert torch.equal(value, seen.weights[kept[0]["step"]][index])
    told = "".join(capsys.readouterr())
    assert f"Stage math ends with the weights after step {kept[0]['step']} of 5" in told and "this costs math " in told
    assert equal(module.parameters(), seen.weights[kept[1]["step"]])
    assert not list((folder / "kept").glob("*"))
    (ended,) = (folder / "checkpoints").glob("*-math.ckpt")  # written anew, with all that a resume needs
    again, _ = small_fit(folder, two_stages(keep_best="general"), small_mixture(records), ckpt_path=ended)
    assert equal(again.parameters(), seen.weights[kept[1]["step"]])


@pytest.mark.parametrize(
    "die_at", [5, pytest.param(2, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
)
def test_a_killed_run_keeps_the_same(records, die_at):
    whole, _ = small_fit(records / "whole", two_stages(keep_best="general"), small_mixture(records))
    part, how = records / "part", {"enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="killed"):
        saver = RunCheckpoint(every_n_steps=1)
        small_fit(part, two_stages(keep_best="general"), small_mixture(records), Remember(die_at), saver, **how)
    last = sorted((part / "checkpoints").glob("*.ckpt"))[-1]
    resumed, _ = small_fit(part, two_stages(keep_best="general"), small_mixture(records), ckpt_path=last)
    assert equal(whole.parameters(), resumed.parameters())
    assert (part / "kept.jsonl").read_text() == (records / "whole" / "kept.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_best": "code", "val_every_n_steps": 2}, "not an ability with held-out examples"),
        ({"keep_best": "general"}, "set val_every_n_steps"),
    ],
)
def test_what_cannot_choose_is_told(records, options, message):
    with pytest.raises(ValueError, match=message):
        small_fit(records / "run", MultiTask(steps=4, **options), small_mixture(records))


def test_a_stage_that_was_stopped_early_is_gone_on_from_by_a_run_that_shares_it(records):
    """As a study's runs do; whose second stage differs."""
    one, other = records / "one", records / "other"
    both = {}
    for folder, rate in ((one, 5e-3), (other, 1e-3)):
        first = Stage("math", {"math": 1.0}, steps=5, learning_rate=0.3, warmup_ratio=0.9)
        later = Stage("code", {"code": 1.0}, steps=2, learning_rate=rate)
        stopper = EarlyStopping("val/loss/general", patience=1)
        checkpoint = None
        if folder is other:
            (ended,) = (one / "checkpoints").glob("*-math.ckpt")
            assert ended.name < "step=000005", "the case must end early"
            other.mkdir()
            checkpoint = shutil.copy(ended, other / ended.name)
            with pytest.raises(ValueError, match="differs from the checkpoint's in: schedule"):
                schedule = Stages([first, later], val_every_n_steps=1)
                small_fit(other, schedule, small_mixture(records), stopper, ckpt_path=checkpoint)
            (other / "reused.json").write_text(json.dumps([{"stage": "math", "key": "", "run": "one"}]))
        schedule = Stages([first, later], val_every_n_steps=1)
        both[folder], _ = small_fit(folder, schedule, small_mixture(records), stopper, ckpt_path=checkpoint)
    assert equal(exported(one, "0-math").parameters(), torch.load(ended, weights_only=False)["state_dict"].values())
    assert not equal(both[one].parameters(), both[other].parameters())
