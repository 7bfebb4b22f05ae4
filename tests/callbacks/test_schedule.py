"""Schedules: the stages they name, and what happens at a boundary, from plain Python."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoModelForCausalLM

from sftlab.callbacks.metrics import JsonlLogger, Metrics
from sftlab.callbacks.schedule import DMT, MixedSequential, MultiTask, Sequential, Stages, StageSchedule
from sftlab.callbacks.scores import ScoreAbilities, score_table
from sftlab.data.ability import AbilityData, CodeData, GeneralData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.model.backbone import resolve_path
from sftlab.model.module import SFTModule
from sftlab.plan.compile import Compiler
from sftlab.plan.rate import Cosine
from sftlab.plan.stage import Stage
from sftlab.results.score import ScoreRow

ABILITIES = ["math", "code", "general"]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MODEL = {**SHAPE, "vocab_size": 1024}


def mixture(folder, **options):
    abilities = {
        "math": MathData(str(folder / "math.jsonl")),
        "code": CodeData(str(folder / "code.json")),
        "general": GeneralData(str(folder / "general.json")),
    }
    return MixtureData(abilities, template="vicuna_short", max_length=128, batch={"examples": 16}, **options)


def fit(folder, schedule, data, *callbacks, trainer=None, **module):
    torch.manual_seed(1)
    model = SFTModule(path=None, config=MODEL, tokenizer="lab-base", **{"learning_rate": 1e-2, **module})
    built = Trainer(
        callbacks=[*callbacks, Metrics(every_n_steps=1), schedule], logger=JsonlLogger(str(folder / "run")),
        default_root_dir=folder / "run", accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False, **(trainer or {}),
    )  # fmt: skip
    built.fit(model, datamodule=data)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return model, [line for line in lines if "train/loss" in line]


def shape(schedule: StageSchedule):
    return [(stage.name, stage.fractions) for stage in schedule.final_stages(ABILITIES)]


def test_the_four_strategies_are_the_papers():
    assert shape(MultiTask()) == [("all", {"math": 1, "code": 1, "general": 1})]
    assert shape(Sequential()) == [("code", {"code": 1}), ("math", {"math": 1}), ("general", {"general": 1})]
    assert shape(Sequential(order=["general", "math"]))[0][0] == "general"
    assert shape(MixedSequential()) == shape(DMT(k=0.0))
    assert shape(DMT(k=1 / 256))[1] == ("general", {"general": 1, "code": 1 / 256, "math": 1 / 256})
    assert all(stage.epochs == 3 for stage in DMT().final_stages(ABILITIES))


def test_dmt_replays_by_tokens_and_what_no_stage_trains():
    first, second = DMT(k=0.25, counted_in="tokens", replay=["web"]).final_stages([*ABILITIES, "web"])
    assert first.fractions == {"code": 1, "math": 1} and second.fractions == {"general": 1, "web": 0.25}
    assert (first.counted_in, second.counted_in) == ("examples", "tokens")
    assert shape(DMT(k=0.0, replay=["web"])) == shape(MixedSequential())
    with pytest.raises(ValueError, match="replay"):
        DMT(replay=["general"])
    with pytest.raises(ValueError, match=r"loss_weights: no stage trains \['poetry'\]"):
        DMT(loss_weights={"poetry": 2.0}).final_stages(ABILITIES)


def test_loss_weights_change_what_is_learned_and_logged_losses_stay_plain(records):
    def lines(weight):
        data = mixture(records)
        found = fit(records / f"{weight}", MultiTask(steps=3, loss_weights={"math": weight}), data)[1]
        for step, line in enumerate(found):
            tokens = dict(zip(data.plan.abilities, data.plan.supervised_A(step, step + 1).tolist(), strict=True))
            whole = sum(line[f"train/loss/{name}"] * count for name, count in tokens.items() if count)
            assert line["train/loss"] == pytest.approx(whole / sum(tokens.values()), rel=1e-6)
        return [{name: line[f"train/loss/{name}"] for name in ABILITIES} for line in found]

    plain, heavy, same = lines(1.0), lines(100.0), lines(1)
    assert plain[0] == heavy[0] and plain == same  # before the first update
    assert all(plain[-1][name] != heavy[-1][name] for name in ABILITIES)


def test_per_stage_changes_one_stage_alone():
    first, second = DMT(k=0.5, per_stage={"general": {"steps": 7, "learning_rate": 1e-5}}).final_stages(ABILITIES)
    assert (first.epochs, first.steps, first.learning_rate) == (3, None, None)
    assert (second.epochs, second.steps, second.learning_rate) == (None, 7, 1e-5)


@pytest.mark.parametrize("warmup", ["warmup_ratio", "warmup_steps"])
def test_the_learning_rate_rises_and_falls_in_each_stage_by_its_own_peak(records, warmup):
    own = {"warmup_ratio": 0.5} if warmup == "warmup_ratio" else {"warmup_steps": 1}
    schedule = DMT(k=0.1, epochs=2, per_stage={"general": {"learning_rate": 5e-3, **own}})
    data = mixture(records)
    _, lines = fit(records, schedule, data, **{warmup: 0.25 if warmup == "warmup_ratio" else 2})
    rates = [line["train/learning_rate"] for line in lines]
    first, second = (stage.num_steps for stage in data.plan.stages)
    num_warmup_steps = int(0.25 * first) if warmup == "warmup_ratio" else 2
    wanted = [1e-2 * Cosine().with_warmup(step, first, num_warmup_steps) for step in range(first)]
    assert rates[:first] == pytest.approx(wanted)
    assert max(rates[first:]) == pytest.approx(5e-3)
    assert [line["stage/index"] for line in lines] == [0.0] * first + [1.0] * second


def test_a_warm_up_that_leaves_no_step_at_the_peak_is_told_with_its_stage(records):
    model = SFTModule(path=None, config=MODEL, tokenizer="lab-base", warmup_steps=4)
    per_stage = {"specialised": {"warmup_steps": 0}}
    with pytest.raises(ValueError, match="stage 'general': warmup_steps is 4, and the stage has 4 steps"):
        DMT(k=0.1, steps=4, per_stage=per_stage).compile(mixture(records), model)
    with pytest.raises(ValueError, match="give one"):
        Stage("all", {"math": 1.0}, epochs=1, warmup_ratio=0.1, warmup_steps=3)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_stage_starts_with_fresh_or_carried_optimizer_state(records, fresh):
    counters = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            counters.append(max(int(state["step"]) for state in trainer.optimizers[0].state.values()))

    data = mixture(records)
    fit(records, DMT(k=0.1, epochs=1, fresh_optimizer=fresh), data, Look())
    boundary = data.plan.boundaries[0]
    assert counters[boundary] == (1 if fresh else boundary + 1)


def test_what_is_trained_is_what_the_plan_says(records):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append((batch.step, sorted(batch.number_D)))

    data = mixture(records, num_workers=1)
    fit(records, Sequential(epochs=1), data, Look())
    plan = data.plan
    assert seen == [(s, sorted(n for row in plan.rows(s) for n in row.tolist())) for s in range(plan.num_steps)]


def test_a_single_ability_is_a_datamodule_of_its_own(records):
    data = AbilityData(str(records / "general.json"), reader=GeneralData.default_reader())
    data.template, data.max_length = "vicuna_short", 128
    _, lines = fit(records, MultiTask(steps=3), data)
    assert len(lines) == 3 and "train/loss/data" in lines[-1]


def test_stages_may_be_written_out_and_callbacks_hear_of_them(records):
    heard = []

    class Listen(Callback):
        def on_stage_start(self, trainer, module, stage):
            heard.append(("start", stage.stage.name, trainer.global_step))

        def on_stage_end(self, trainer, module, stage):
            heard.append(("end", stage.stage.name, trainer.global_step))

    stages = [Stage("one", {"math": 0.5}, steps=2), Stage("two", {"code": 1.0}, supervised_tokens=50)]
    data = mixture(records)
    fit(records, Stages(stages), data, Listen())
    end = data.plan.num_steps
    assert heard == [("start", "one", 0), ("end", "one", 2), ("start", "two", 2), ("end", "two", end)]


def test_activation_checkpointing_and_chunks_change_nothing(records):
    runs = [
        fit(records / name, MultiTask(steps=3), mixture(records), **options)[1]
        for name, options in (
            ("a", {}),
            ("b", {"activation_checkpointing": True}),
            ("c", {"chunk_tokens": 16}),
            ("d", {"activation_checkpointing": "selective", "chunk_tokens": 16}),
        )
    ]
    first, *others = [[line["train/loss"] for line in lines] for lines in runs]
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_abilities_are_scored_at_stage_ends_and_inside_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    abilities = {"math": MathData(num_examples=40), "general": GeneralData(num_examples=40)}
    data = MixtureData(abilities, template="vicuna_short", max_length=256, batch={"examples": 10})
    schedule = Sequential(steps=4)
    fit(tmp_path, schedule, data, ScoreAbilities(num_problems=3, every_n_steps=3))
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["headline"]]
    assert [(r["step"], r["inside"]) for r in rows if r["ability"] == "math"] == [
        (3, True), (4, False), (6, True), (8, False)
    ]  # fmt: skip
    answers = (tmp_path / "run" / "answers" / "step=000008-general" / "lab_math.problems.jsonl").read_text()
    assert len(answers.splitlines()) == 6 and "prompts" in json.loads(answers.splitlines()[0])
    ends = [row for row in rows if not row["inside"]]
    table = score_table(
        [ScoreRow.from_dict(row, "scores.jsonl") for row in ends], {"math": ("math",), "general": ("general",)}
    )
    assert table.row_count == 4  # two stages, backward transfer, forgetting


def test_a_curriculum_by_the_loss_of_the_base_measures_the_base_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    abilities = {"math": MathData(num_examples=30), "general": GeneralData(num_examples=30)}
    data = MixtureData(abilities, template="vicuna_short", max_length=256, batch={"examples": 10}, seed=1)
    module = SFTModule(path="lab:small")
    seen = torch.get_rng_state()
    plan = MultiTask(epochs=1, curriculum="easy_first").compile(data, module)
    assert torch.equal(seen, torch.get_rng_state()) and "Measuring the base's loss" in "".join(capsys.readouterr())
    model = AutoModelForCausalLM.from_pretrained(resolve_path("lab:small"), dtype=torch.float32)
    wanted = []
    for number in plan.example_E.tolist():  # each example by itself, by Hugging Face's own loss
        table = abilities[plan.abilities[plan.ability_N[number]]].examples
        ids = torch.from_numpy(table.ids(int(plan.index_N[number])).astype("int64"))[None]
        mask = torch.from_numpy(table.mask(int(plan.index_N[number])))[None]
        with torch.no_grad():
            wanted.append(float(model(ids, labels=torch.where(mask, ids, -100)).loss))
    assert plan.losses_N[plan.example_E] == pytest.approx(wanted, abs=1e-3)
    losses = [plan.losses_N[np.concatenate(plan.rows(step))] for step in range(plan.num_steps)]
    assert all(one.max() <= other.min() for one, other in pairwise(losses))
    MultiTask(epochs=1, curriculum="hard_first").compile(data, module)
    assert "Measuring" not in "".join(capsys.readouterr())
    for number, path in enumerate(sorted((tmp_path / "cache" / "base_losses").glob("*.npy"))):
        path.write_bytes(path.read_bytes()[: 100 * number])  # none left, or a part
    again = MultiTask(epochs=1, curriculum="easy_first").compile(data, module)
    assert "".join(capsys.readouterr()).count("measured again") >= 2 and (again.example_E == plan.example_E).all()
    with pytest.raises(ValueError, match="random weights know nothing"):
        MultiTask(epochs=1, curriculum="easy_first").compile(data, SFTModule(path="lab-base"))


class Growing(StageSchedule):
    """An adaptive schedule: each segment trains the ability that was not trained in the one before."""

    def stages(self, abilities):
        return [self.stage("turns", dict.fromkeys(abilities, 1.0))]

    def compile(self, data, module):
        data.load(module.tokenizer)
        self.compiler = Compiler(data.pools(), data.policy, data.batch, data.max_length, data.seed)
        self.asked_at = []
        self._next()
        return self.compiler.plan

    def extend(self, context):
        self.asked_at.append(context.step)
        if len(self.compiler.plan.segments) < 4:
            self._next()
        else:
            self.compiler.plan.is_open = False

    def _next(self):
        ability = ("math", "general")[len(self.compiler.plan.segments) % 2]
        self.compiler.append(Stage("turns", {ability: 1.0}, steps=3), stage_steps=12)


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 3)])
def test_a_schedule_may_compile_its_next_segment_when_the_last_is_trained(records, workers, accumulate):
    data, schedule, seen = mixture(records, num_workers=workers), Growing(), []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(
                (batch.step, {data.plan.abilities[n] for n in batch.ability_D[batch.supervised_D > 0].tolist()})
            )

    _, lines = fit(records, schedule, data, Look(), trainer={"accumulate_grad_batches": accumulate})
    assert schedule.asked_at == [3, 6, 9, 12] and not data.plan.is_open
    assert [line["step"] for line in lines] == list(range(1, 13))
    turns = {step: set().union(*(names for at, names in seen if at == step)) for step in range(12)}
    assert turns == {step: {("math", "general")[step // 3 % 2]} for step in range(12)}
    wanted = [1e-2 * Cosine().with_warmup(step, 12, 0) for step in range(12)]
    assert [line["train/learning_rate"] for line in lines] == pytest.approx(wanted)


def test_a_data_module_of_another_kind_is_refused(records):
    with pytest.raises(ValueError, match="MixtureData"):
        Trainer(callbacks=[DMT()], logger=False, accelerator="cpu", enable_checkpointing=False).fit(
            SFTModule(path=None, config=MODEL, tokenizer="lab-base"), train_dataloaders=[1]
        )
