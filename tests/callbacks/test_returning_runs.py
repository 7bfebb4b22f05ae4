"""Adaptive stages that give steps up, in runs: the state that comes back is exact, and the same after any kill."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from fitting import run as sftlab
from fitting import write_config, write_records
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file
from small import Killed, small_fit, small_mixture, trained

from sftlab.callbacks.adaptive import Adaptive
from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.context import RunContext
from sftlab.callbacks.ledger import Ledger
from sftlab.callbacks.schedule import Stages
from sftlab.callbacks.segment_states import SegmentStates
from sftlab.data.ability import CodeData, GeneralData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.model.adapter import LoRA
from sftlab.plan.adaptive import AdaptivePolicy, NextSegment
from sftlab.plan.returning_policies import MSFT, DynaMiCS
from sftlab.plan.stage import Stage

NAMES = ("code", "general", "math")


class Tour(AdaptivePolicy):
    """Trains, gives two segments up, trains one of its own length, and ends the stage with an earlier state."""

    may_return = True

    def decide(self, observations):
        equal = dict.fromkeys(observations.abilities, 1 / len(observations.abilities))
        alone = {name: float(name == "math") for name in observations.abilities}
        return [
            NextSegment(equal),
            NextSegment(alone, keep=[3]),
            NextSegment(equal, keep=[3]),
            NextSegment(equal, 2, return_to=3, keep=[3]),
            NextSegment(alone, keep=[3, 11]),
            NextSegment({}, return_to=11),
        ][observations.segment]


def tour(**options):
    return Adaptive(Tour(), 3, steps=30, **options)


def held_out(records):
    data = small_mixture(records)
    data.abilities["code"] = CodeData(str(records / "code.json"), val_fraction=0.2)
    return data


def decisions(folder):
    return [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]


def states(folder):
    return sorted(path.name for path in (folder / "segments").glob("*")) if (folder / "segments").is_dir() else []


class Recorder(Callback):
    """Keeps weights, the optimizer's state, the states on the disk and the rate at the start of each step."""

    changes_training = False

    def __init__(self):
        self.weights, self.moments, self.kept, self.rates = {}, {}, {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, optimizer = trainer.global_step, trainer.optimizers[0]
        self.weights[step] = [p.detach().clone() for p in pl_module.parameters() if p.requires_grad]
        self.moments[step] = [value.clone() for state in optimizer.state.values() for value in state.values()]
        self.kept[step] = states(RunContext.of(trainer).folder)
        self.rates[step] = (optimizer.param_groups[0]["lr"], pl_module.learning_rate_at(step))


@pytest.fixture(scope="module")
def records(module_records):
    """Small records, with one cache for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "5")
        yield module_records


@pytest.fixture(scope="module")
def whole_tour(records):
    """A tour that nobody has killed."""
    return run(records, records / "whole-tour", tour())


def run(records, folder, schedule, *callbacks, data=None, **options):
    module, lines = small_fit(folder, schedule, data or held_out(records), *callbacks, Ledger(), **options)
    return module, lines, folder


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


MODELS = [{}, {"adapter": LoRA(r=2)}, {"optimizer": "AdamWScheduleFree"}]


@pytest.mark.parametrize("model", MODELS, ids=["full", "lora", "schedule-free"])
def test_the_state_that_comes_back_is_that_of_the_earlier_step_and_steps_go_on(records, tmp_path, model):
    if "optimizer" in model:
        pytest.importorskip("schedulefree")
    at, data = Recorder(), held_out(records)
    module, lines, folder = run(records, tmp_path / "a", tour(), at, data=data, model_options=model)
    # segments [0, 3) [3, 6) [6, 9), back to 3, [9, 11), [11, 14), back to 11, the end
    plan = data.plan
    assert plan.num_steps == 14 and len(trained(lines)) == 14 and not plan.is_open
    assert same(at.weights[3], at.weights[9]) and same(at.moments[3], at.moments[9]) and at.moments[3]
    assert not same(at.weights[6], at.weights[9]) and not same(at.moments[6], at.moments[9])
    assert same([p for p in module.parameters() if p.requires_grad], at.weights[11])
    assert all(rate == planned for rate, planned in at.rates.values()), "a function of the step alone"
    assert len({rate for rate, _ in at.rates.values()}) > 10
    # What no decision may return to is not there any more.
    assert at.kept[4] == ["step=000003"] and at.kept[12] == ["step=000003", "step=000011"]
    assert not (folder / "segments").exists()
    account = json.loads((folder / "ledger.json").read_text())
    given_up = [3, 4, 5, 6, 7, 8, 11, 12, 13]
    assert account["num_steps"] == 14 and sum(row["examples"] for row in account["rows"]) == 16 * 14
    assert sum(row["given_up_examples"] for row in account["rows"]) == 16 * len(given_up)
    names = ", ".join(f"{row['ability']} {row['given_up_examples']}" for row in account["rows"])
    assert f"so not in the weights: {names}" in (folder / "stages/0-adaptive/README.md").read_text()
    table = pq.read_table(folder / "exposures.parquet").to_pydict()
    assert sorted({s for s, lost in zip(table["step"], table["given_up"], strict=True) if lost}) == given_up
    found = decisions(folder)
    assert [one["return_to"] for one in found] == [None, None, None, 3, None, 11] and found[-1]["shares"] == {}
    assert [line["decision/return_to"] for line in lines if "decision/return_to" in line] == [3.0, 11.0]


SCHEDULES = {
    "tour": tour,
    "msft": lambda: Adaptive(MSFT(6), 2, steps=16, per_stage={"adaptive": {"learning_rate": 0.3}}),
    "dynamics": lambda: Stages(
        [
            Stage("first", {"math": 1.0}, steps=2),
            Stage(
                "second",
                dict.fromkeys(NAMES, 1.0),
                steps=22,
                adaptive=DynaMiCS({"math": None}, probe_steps=1),
                decide_every_n_steps=4,
            ),
        ]
    ),
}


def kill(records, folder, kind, every, *killers):
    with pytest.raises(RuntimeError, match="killed"):
        run(records, folder, SCHEDULES[kind](), RunCheckpoint(every), *killers, enable_checkpointing=True)


def other_than(whole, records, folder, kind, step=None):
    """In what the killed run in a folder ends otherwise, from its last checkpoint or that of a step."""
    module, lines, other = whole
    name = f"step={step:06d}.ckpt" if step else "*.ckpt"
    last = sorted((folder / "checkpoints").glob(name))[-1]
    resumed, more, _ = run(records, folder, SCHEDULES[kind](), ckpt_path=last)
    alike = {
        "decisions": decisions(folder) == decisions(other),
        "weights": same(module.parameters(), resumed.parameters()),
        "losses": trained(more)[-1] == trained(lines)[-1],
        "ledger": (folder / "ledger.json").read_text() == (other / "ledger.json").read_text(),
        "states are gone": not (folder / "segments").exists(),
    }
    return [name for name, is_alike in alike.items() if not is_alike]


@pytest.mark.parametrize("step", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 9, 14))])
def test_a_tour_killed_after_any_step_goes_on_with_the_same_decisions_and_weights(records, tmp_path, whole_tour, step):
    kill(records, tmp_path / "part", "tour", 1, Killed(step))
    assert other_than(whole_tour, records, tmp_path / "part", "tour") == []


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("msft", [13], marks=pytest.mark.slow),
        pytest.param("dynamics", [8, 10], marks=pytest.mark.slow),
    ],
)
def test_policies_that_are_killed_go_on_with_the_same_decisions_and_weights(records, tmp_path, kind, steps):
    whole = run(records, tmp_path / "whole", SCHEDULES[kind]())
    assert any(one["return_to"] is not None for one in decisions(whole[2])), "the case must return"
    for step in steps:
        kill(records, tmp_path / f"part-{step}", kind, 1, Killed(step))
        assert other_than(whole, records, tmp_path / f"part-{step}", kind) == []


def test_without_held_out_examples_a_return_is_in_the_checkpoint_of_its_step(records, tmp_path):
    def without():
        kinds = {"math": MathData, "code": CodeData, "general": GeneralData}
        files = {"math": "math.jsonl", "code": "code.json", "general": "general.json"}
        abilities = {name: kind(str(records / files[name])) for name, kind in kinds.items()}
        return MixtureData(abilities, template="vicuna_short", max_length=128, batch={"examples": 16}, seed=5)

    whole, _, folder = run(records, tmp_path / "whole", tour(), data=without())
    saver = RunCheckpoint(every_n_steps=1)
    with pytest.raises(RuntimeError, match="killed"):
        run(records, tmp_path / "part", tour(), saver, Killed(10), data=without(), enable_checkpointing=True)
    last = tmp_path / "part/checkpoints/step=000009.ckpt"
    resumed, _, part = run(records, tmp_path / "part", tour(), data=without(), ckpt_path=last)
    assert same(whole.parameters(), resumed.parameters()) and decisions(part) == decisions(folder)


KILLS = [("_write", 1), ("_read", 1), ("_remove", 3), ("_read", 2), ("stage_ended", 1)]


@pytest.mark.parametrize(("method", "count"), KILLS)
def test_killed_in_the_midst_of_a_return_it_goes_on_the_same(records, tmp_path, whole_tour, method, count):
    done, calls = getattr(SegmentStates, method), []

    def dying(self, *arguments, **options):
        calls.append(method)
        if (method, len(calls)) == ("stage_ended", count):
            raise RuntimeError("killed")  # before anything is removed
        done(self, *arguments, **options)
        if len(calls) == count:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentStates, method, dying)
        kill(records, tmp_path / "part", "tour", 2)
    assert other_than(whole_tour, records, tmp_path / "part", "tour") == []


def test_states_stay_as_long_as_a_checkpoint_needs_them_and_one_that_is_lost_is_told(records, tmp_path, whole_tour):
    part, saver = tmp_path / "part", RunCheckpoint(every_n_steps=4, keep_last=None)
    with pytest.raises(RuntimeError, match="killed"):
        run(records, part, tour(), saver, Killed(13), enable_checkpointing=True)
    assert states(part) == ["step=000003", "step=000011"]
    (part / "segments/step=000003").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"the state after step 3, which the stage returns to, is lost"):
        run(records, part, tour(), ckpt_path=part / "checkpoints/step=000004.ckpt")
    (tmp_path / "away").rename(part / "segments/step=000003")
    # Segments that are trained again, from an older checkpoint, leave the newer ones what they need.
    again = shutil.copytree(part, tmp_path / "again")
    run(records, again, tour(), ckpt_path=again / "checkpoints/step=000004.ckpt", max_steps=7)
    assert states(again) == ["step=000003", "step=000011"]
    assert other_than(whole_tour, records, again, "tour", step=12) == []
    assert other_than(whole_tour, records, part, "tour", step=4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_best": "math", "val_every_n_steps": 2}, "keep_best: Tour may return to earlier weights"),
        ({"average_last_n_steps": 2}, "average_last_n_steps: Tour may return"),
    ],
)
def test_what_also_chooses_the_last_weights_is_refused(records, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(records, tmp_path, tour(**options))


def test_early_stopping_which_could_end_the_stage_in_a_probe_is_refused(records, tmp_path):
    with pytest.raises(ValueError, match=r"EarlyStopping: Tour may return .*; leave EarlyStopping out"):
        run(records, tmp_path, tour(val_every_n_steps=3), EarlyStopping("val/loss/math"))


def test_held_out_losses_that_are_none_or_not_finite_decide_nothing(records, tmp_path):
    with pytest.raises(ValueError, match="limit_val_batches: 0 validates nothing, and MSFT decides"):
        run(records, tmp_path / "none", Adaptive(MSFT(4), 2, steps=8), limit_val_batches=0)

    class Broken(Callback):
        changes_training = False

        def on_validation_end(self, trainer, pl_module):
            pl_module.val_losses["math"] = float("nan")

    with pytest.raises(ValueError, match="MSFT decides by held-out losses, and after step 2 that of math is nan"):
        run(records, tmp_path / "nan", Adaptive(MSFT(4), 2, steps=8), Broken())


@pytest.mark.parametrize("policy", [MSFT(4), DynaMiCS({"math": None}), DynaMiCS({"general": 1.0}, ["code"])])
def test_policies_that_look_at_held_out_losses_need_val_fraction(records, tmp_path, policy):
    schedule = Adaptive(policy, 2, steps=24, abilities=["general", "math"] if "code" in policy.looks_at else None)
    with pytest.raises(ValueError, match=r"decides by held-out examples, and \['code'\] have none: set val_fraction"):
        run(records, tmp_path, schedule, data=small_mixture(records))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_return_as_one_does_and_go_on_where_they_were_cut(tmp_path):
    write_records(tmp_path)
    policy = {"class_path": "DynaMiCS", "init_args": {"levels": {"math": None}, "probe_steps": 1}}
    options = {"adaptive": policy, "decide_every_n_steps": 3, "steps": 13}
    config = write_config(
        tmp_path,
        schedule={"class_path": "Adaptive", "init_args": options},
        **{"model/config/attention_dropout": 0.0, "data/abilities/code/init_args/val_fraction": 0.1},
    )
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    sftlab(tmp_path, "fit", "--config", config, "--run", "one")
    sftlab(tmp_path, "fit", "--config", config, "--run", "two", "--trainer.max_steps", "4", *ranks)
    logs = tmp_path / "lightning_logs"
    assert (logs / "two/segments/step=000003").is_dir(), "sharded as other checkpoints are"
    sftlab(tmp_path, "fit", "--config", config, "--run", "two", "--ckpt_path", "last", *ranks)
    one, two = decisions(logs / "one"), decisions(logs / "two")
    assert [line["return_to"] for line in two] == [line["return_to"] for line in one]
    assert [line["return_to"] for line in one][:5] == [None, None, 3, 3, 3]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["shares"] == pytest.approx(theirs["shares"], abs=1e-3)
    mine, theirs = (load_file(logs / name / "stages/0-adaptive/model.safetensors") for name in ("two", "one"))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=1e-3)
    assert not (logs / "two/segments").exists()
