"""Adaptive schedules in runs: decided from what was trained, told, and the same after a kill at any step."""

import json

import pytest
import torch
from fitting import alike, losses, write_config, write_records
from fitting import run as sftlab
from safetensors.torch import load_file
from small import Killed, small_fit, small_mixture, trained

from sftlab.callbacks.adaptive import Adaptive
from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.ledger import Ledger
from sftlab.callbacks.schedule import Stages
from sftlab.plan.adaptive import AdaptivePolicy, Observations
from sftlab.plan.adaptive_policies import Exp3, OnlineDataMixing, OnlineDoReMi
from sftlab.plan.stage import Stage

REFERENCE = {"math": 4.0, "code": 5.0, "general": 4.5}


def mixing(steps=13, every=4, policy=None, **options):
    return Adaptive(policy or OnlineDataMixing(alpha=0.5), every, steps=steps, **options)


def decisions(folder):
    return [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]


def run(records, name, schedule, *callbacks, data=None, **trainer):
    folder = records / name
    module, lines = small_fit(folder, schedule, data or small_mixture(records), *callbacks, Ledger(), **trainer)
    return module, lines, folder


def test_decisions_come_from_the_losses_of_the_segment_and_are_told(records):
    data = small_mixture(records)
    _, lines, folder = run(records, "a", mixing(), data=data)
    found, plan = decisions(folder), data.plan
    assert [d["observations"]["step"] for d in found] == [0, 4, 8, 12] and not plan.is_open and plan.num_steps == 13
    steps = trained(lines)
    for number, one in enumerate(found[1:], start=1):
        begin = 4 * (number - 1)
        for ability, loss in one["observations"]["train_loss"].items():
            index = plan.abilities.index(ability)
            tokens = [int(plan.supervised_A(s, s + 1)[index]) for s in range(begin, begin + 4)]
            sums = [steps[begin + i].get(f"train/loss/{ability}", 0.0) * count for i, count in enumerate(tokens)]
            assert loss == pytest.approx(sum(sums) / sum(tokens), rel=1e-6)
    policy = OnlineDataMixing(alpha=0.5)
    assert [policy.decide(Observations(**d["observations"])) for d in found] == [d["shares"] for d in found]
    logged = [line for line in lines if "decision/share/math" in line]
    assert [line["decision/share/math"] for line in logged] == [d["shares"]["math"] for d in found[1:]]
    rows = json.loads((folder / "ledger.json").read_text())["rows"]
    assert sum(row["examples"] for row in rows) == 13 * 16
    for segment, one in zip(plan.segments, found, strict=True):
        counts = torch.bincount(torch.tensor(plan.ability_N[segment.example_E]), minlength=3).tolist()
        wanted = [one["shares"][name] * sum(counts) for name in plan.abilities]
        assert max(abs(c - w) for c, w in zip(counts, wanted, strict=True)) < 1


POLICIES = {
    "odm": lambda: mixing(),
    "exp3": lambda: mixing(policy=Exp3(seed=1)),
    "stage2": lambda: Stages(
        [
            Stage("first", {"math": 1.0}, steps=2),
            Stage(
                "second", dict.fromkeys(REFERENCE, 1.0), steps=9, adaptive=OnlineDataMixing(), decide_every_n_steps=4
            ),
        ]
    ),
}


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("odm", [9]),
        ("stage2", [7]),
        pytest.param("odm", [2, 3, 4, 5, 12, 13], marks=pytest.mark.slow),
        pytest.param("exp3", [5, 8], marks=pytest.mark.slow),
        pytest.param("stage2", [2, 3, 6], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_with_the_same_decisions_and_weights(records, kind, kills):
    whole, lines, folder = run(records, "whole", POLICIES[kind]())
    for kill in kills:
        part = records / f"killed-{kill}"
        with pytest.raises(RuntimeError, match="killed"):
            run(
                records,
                part.name,
                POLICIES[kind](),
                RunCheckpoint(every_n_steps=1),
                Killed(kill),
                enable_checkpointing=True,
            )
        last = sorted((part / "checkpoints").glob("*.ckpt"))[-1]
        resumed, more, _ = run(records, part.name, POLICIES[kind](), ckpt_path=last)
        assert decisions(part) == decisions(folder), kill
        assert same_weights(whole, resumed), kill
        assert trained(more)[-1] == trained(lines)[-1]
        assert (part / "ledger.json").read_text() == (folder / "ledger.json").read_text()


def test_held_out_losses_decide_where_the_policy_asks_for_them(records):
    class ByHeldOut(AdaptivePolicy):
        needs_validation = True

        def decide(self, observations):
            worst = max(observations.val_loss or {"math": 0.0}, key=lambda name: observations.val_loss.get(name, 0.0))
            return {name: 0.8 if name == worst else 0.2 for name in observations.abilities}

    schedule = mixing(steps=6, every=3, policy=ByHeldOut(), abilities=["general", "math"])
    _, lines, folder = run(records, "a", schedule)
    seen = decisions(folder)[1]["observations"]["val_loss"]
    logged = {
        k.removeprefix("val/loss/"): v for line in lines for k, v in line.items() if line["step"] == 3 and "val/" in k
    }
    assert seen == logged and set(seen) == {"general", "math"}
    with pytest.raises(ValueError, match=r"decides by held-out examples, and \['code'\] have none: set val_fraction"):
        run(records, "b", mixing(policy=OnlineDoReMi(REFERENCE)))


def test_micro_batches_change_no_decision(records):
    one, other = (run(records, f"a{n}", mixing(steps=9), accumulate_grad_batches=n)[2] for n in (1, 3))
    for mine, theirs in zip(decisions(one), decisions(other), strict=True):
        assert mine["shares"] == pytest.approx(theirs["shares"], abs=1e-5)


def test_adaptive_needs_steps():
    with pytest.raises(ValueError, match="budget of optimizer steps"):
        Adaptive(OnlineDataMixing(), 5, epochs=2).final_stages(["math"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_decide_and_keep_as_one_does_and_go_on_where_they_were_cut(tmp_path):
    write_records(tmp_path)
    first = {"name": "math", "fractions": {"math": 1.0}, "steps": 5, "learning_rate": 0.3, "warmup_ratio": 0.9}
    policy = {"class_path": "OnlineDataMixing", "init_args": {"alpha": 0.5}}
    second = {"name": "all", "fractions": dict.fromkeys(REFERENCE, 1.0), "steps": 6, "learning_rate": 1e-2,
              "adaptive": policy, "decide_every_n_steps": 2}  # fmt: skip
    options = {"list_of_stages": [first, second], "keep_best": "general", "val_every_n_steps": 1}
    schedule = {"class_path": "Stages", "init_args": options}
    config = write_config(tmp_path, schedule=schedule, **{"model/config/attention_dropout": 0.0})
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    for name, more in {"one": [], "two": [*ranks, "--trainer.max_steps", "7"]}.items():
        sftlab(tmp_path, "fit", "--config", config, "--run", name, *more)
    sftlab(tmp_path, "fit", "--config", config, "--run", "two", "--ckpt_path", "last", *ranks)
    logs = tmp_path / "lightning_logs"
    one = logs / "one"
    kept = [json.loads(line) for line in (one / "kept.jsonl").read_text().splitlines()]
    assert kept[0]["step"] < 5, "the case must have a best step inside a stage"
    two = logs / "two"
    for mine, theirs in zip(decisions(two), decisions(one), strict=True):
        assert mine["shares"] == pytest.approx(theirs["shares"], abs=1e-5)
        assert mine["observations"]["step"] == theirs["observations"]["step"]
    for mine, theirs in zip(losses(two), losses(one), strict=True):
        assert alike(mine, theirs), (mine, theirs)
    lines = [json.loads(line) for line in (two / "kept.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(line["stage"], line["step"]) for line in kept]
    for stage in ("0-math", "1-all"):
        mine, theirs = (load_file(folder / "stages" / stage / "model.safetensors") for folder in (two, one))
        for name in theirs:  # a step of the first stage moves a weight by up to 0.3
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-3, rtol=1e-3)
