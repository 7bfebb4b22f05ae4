"""average_last_n_steps: a stage ends with the mean of its weights after each of its last steps."""

import pytest
import torch
from fitting import run, write_config, write_records
from lightning.pytorch import Callback
from safetensors.torch import load_file
from small import small_fit, small_mixture
from transformers import AutoModelForCausalLM

from sftlab.callbacks.adaptive import Adaptive
from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import MultiTask, Stages
from sftlab.plan.adaptive_policies import OnlineDataMixing
from sftlab.plan.stage import Stage


class Remember(Callback):
    """Weights after every step."""

    changes_training = False

    def __init__(self, die_at=None):
        self.weights, self.die_at = {}, die_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights[trainer.global_step] = {n: p.detach().clone() for n, p in pl_module.backbone.named_parameters()}
        if trainer.global_step == self.die_at:
            raise RuntimeError("killed")


def two_stages(**options):
    return Stages([Stage("math", {"math": 1.0}, steps=5), Stage("code", {"code": 1.0}, steps=2)], **options)


def mean_of(weights, steps):
    return {name: torch.stack([weights[s][name].double() for s in steps]).mean(0).float() for name in weights[steps[0]]}


def assert_near(mine, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-7)


def test_each_stage_ends_with_its_mean_and_the_next_goes_on_from_it(records, capsys):
    folder, seen = records / "run", Remember()
    module, _ = small_fit(folder, two_stages(average_last_n_steps=3), small_mixture(records), seen)
    first = AutoModelForCausalLM.from_pretrained(folder / "stages" / "0-math", dtype=torch.float32)
    assert_near(dict(first.named_parameters()), mean_of(seen.weights, [3, 4, 5]))
    assert_near(dict(module.backbone.named_parameters()), mean_of(seen.weights, [6, 7]))
    told = "".join(capsys.readouterr())
    assert "Stage math ends with the mean of its weights after its last 3 steps" in told
    assert "Stage code ends with the mean of its weights after its last 2 steps" in told
    assert not list((folder / "averaged").glob("*"))
    small_fit(records / "plain", two_stages(), small_mixture(records), other := Remember())
    assert all(torch.equal(seen.weights[5][n], other.weights[5][n]) for n in seen.weights[5])
    assert any(not torch.equal(seen.weights[6][n], other.weights[6][n]) for n in seen.weights[6])


@pytest.mark.parametrize(
    "die_at", [4, pytest.param(5, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
)
def test_a_killed_run_has_the_same_mean(records, die_at):
    whole, _ = small_fit(records / "whole", two_stages(average_last_n_steps=3), small_mixture(records))
    part, how = records / "part", {"enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="killed"):
        saver = RunCheckpoint(every_n_steps=1)
        small_fit(part, two_stages(average_last_n_steps=3), small_mixture(records), Remember(die_at), saver, **how)
    last = sorted((part / "checkpoints").glob("*.ckpt"))[-1]
    resumed, _ = small_fit(part, two_stages(average_last_n_steps=3), small_mixture(records), ckpt_path=last)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_an_adaptive_stage_is_averaged_over_its_own_end(records):
    schedule = Adaptive(OnlineDataMixing(), 3, steps=7, average_last_n_steps=4)
    module, _ = small_fit(records / "run", schedule, small_mixture(records), seen := Remember())
    assert_near(dict(module.backbone.named_parameters()), mean_of(seen.weights, [4, 5, 6, 7]))
    assert len((records / "run" / "decisions.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_last_n_steps": 0}, "schedule.average_last_n_steps"),
        ({"average_last_n_steps": 2, "keep_best": "math"}, "both say how a stage ends"),
    ],
)
def test_what_cannot_be_averaged_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(steps=4, **options)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_average_as_one_does_and_one_goes_on_from_what_they_put_aside(tmp_path):
    write_records(tmp_path)
    stages = [{"name": "math", "fractions": {"math": 1.0}, "steps": 6, "learning_rate": 0.1}]
    options = {"list_of_stages": stages, "average_last_n_steps": 4}
    schedule = {"class_path": "Stages", "init_args": options}
    config = write_config(tmp_path, schedule=schedule, **{"model/config/attention_dropout": 0.0})
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    run(tmp_path, "fit", "--config", str(config), "--run", "one")
    run(tmp_path, "fit", "--config", str(config), "--run", "two", *ranks, "--trainer.max_steps", "4")
    assert len(list((tmp_path / "lightning_logs" / "two" / "averaged" / "step=000004").glob("*.pt"))) == 2
    run(tmp_path, "fit", "--config", str(config), "--run", "two", "--ckpt_path", "last")
    one, two = (
        load_file(tmp_path / "lightning_logs" / name / "stages" / "0-math" / "model.safetensors")
        for name in ("one", "two")
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)
