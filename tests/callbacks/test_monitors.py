"""EarlyStopping, monitors, what is not finite, and callbacks that a plan has no place for."""

import contextlib
import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from fitting import write_records
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from small import MODEL, small_fit, small_mixture

import sftlab
from sftlab import DMT, MultiTask, SFTModule
from sftlab.callbacks.finite import DIVERGED
from sftlab.callbacks.monitors import REFUSED, leaving_places, refuse_places
from sftlab.cli import config_problems, parse_objects


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    return tmp_path


def never_better(**options):
    """Stops a stage at its second validation."""
    return EarlyStopping("val/loss/general", min_delta=100.0, patience=1, **options)


@pytest.mark.parametrize(("stop_early", "steps"), [("stage", [4, 4]), ("run", [4])])
def test_early_stopping_ends_a_stage_well_and_goes_on_or_ends_the_run(records, stop_early, steps, capsys):
    data = small_mixture(records)
    schedule = DMT(k=0.5, steps=9, val_every_n_steps=2, stop_early=stop_early)
    _, lines = small_fit(records, schedule, data, never_better(), log_every=3)
    plan = data.plan
    logged = [line["step"] for line in lines if "train/loss" in line]
    assert logged == ([3, 4, 6, 8] if stop_early == "stage" else [3, 4]), "no point holds two stages"
    assert "watches val/loss/general, and stage specialised does not train general" in capsys.readouterr().out
    assert [stage.num_steps for stage in plan.stages] == steps
    assert max(line["step"] for line in lines) == sum(steps)
    for stage, name in zip(plan.stages, ("0-specialised", "1-general"), strict=False):
        assert (records / "stages" / name / "model.safetensors").is_file()
        assert (records / "checkpoints" / f"step={stage.end_step:06d}-{stage.stage.name}.ckpt").is_file()
    assert sum(line["step"] == sum(steps) and "stage/seconds" in line for line in lines) == 1


def test_a_monitor_that_nobody_logs_is_told_before_training_and_so_is_one_that_could_never_stop(records):
    for callback, said in [
        (EarlyStopping("val/loss/nosuch"), "nobody logs 'val/loss/nosuch'; there is val/loss/"),
        (ModelCheckpoint(monitor="val_loss_general"), "val/loss/general"),
        (never_better(), "set schedule.val_every_n_steps"),
        (WeightAveraging(), "average exported stages instead"),
    ]:
        with pytest.raises(ValueError, match=said):
            checkpoints = isinstance(callback, ModelCheckpoint)
            small_fit(records, MultiTask(steps=2), small_mixture(records), callback, enable_checkpointing=checkpoints)


def test_training_stops_at_the_first_gradient_that_is_not_finite_and_names_the_examples(records):
    data = small_mixture(records)
    schedule = MultiTask(steps=6, per_stage={"all": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match=r"diverged in optimizer step \d+: .*Its weights are not exported"):
        small_fit(records, schedule, data, BlowUp())
    told = json.loads((records / DIVERGED).read_text())
    wanted = [data.plan.uids_N[n] for row in data.plan.rows(told["step"] - 1) for n in row]
    assert [example["uid"] for example in told["examples"]] == wanted
    assert not (records / "stages").exists()
    for line in (records / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


class BlowUp(Timer):
    """Weights that are not finite from the third step on."""

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == 2:
            with torch.no_grad():
                next(module.parameters()).mul_(float("inf"))


def fp16(scale):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_under_fp16_steps_that_overflow_are_told_and_a_loss_that_is_no_number_stops(records, capsys):
    data, options = small_mixture(records), {"enable_checkpointing": False}
    _, lines = small_fit(records, MultiTask(steps=12), data, plugins=fp16(2.0**26), **options)
    overflowed = [line["step"] for line in lines if line.get("train/gradient_norm", 0) is None]
    assert overflowed and overflowed == list(range(1, len(overflowed) + 1)) and len(overflowed) < 12
    assert f"Stage all: {len(overflowed)} steps changed no weight" in capsys.readouterr().out
    with pytest.raises(ValueError, match="diverged in optimizer step 3: its loss is nan"):
        small_fit(records / "nan", MultiTask(steps=6), small_mixture(records), BlowUp(), plugins=fp16(2.0**10))
    with pytest.raises(ValueError, match="diverged in optimizer step 30: fp16 overflowed in 30 steps in a row"):
        small_fit(records / "inf", MultiTask(steps=40), small_mixture(records), Overflow(), plugins=fp16(2.0**10))
    assert not (records / "nan" / "stages").exists() and not (records / "inf" / "stages").exists()


class Overflow(Timer):
    """Gradients that are infinite in every step."""

    def on_after_backward(self, trainer, module):
        next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("inf"))


@pytest.mark.parametrize(
    "make",
    [
        lambda place: {"profiler": SimpleProfiler(place, "report")},
        lambda place: {"profiler": AdvancedProfiler(place, "report")},
        lambda place: {"profiler": PyTorchProfiler(place, "report")},
        lambda place: {"callbacks": [ModelCheckpoint(place)]},
        lambda place: {"callbacks": [OnExceptionCheckpoint(place)]},
        lambda place: {"logger": [CSVLogger(place)]},
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_training(records, make):
    (records / "file").write_text("")
    folder = str(records / "file" / "inner")
    with pytest.raises(
        ValueError, match=r"trainer: \w+\.(dirpath|save_dir): .*inner cannot be written \(Not a directory\)"
    ):
        sftlab_fit(records, **make(folder))
    assert not (records / "lightning_logs").exists() or not list((records / "lightning_logs").iterdir())


def sftlab_fit(records, **trainer):
    """From Python, with the folder of a run."""
    options = {"accelerator": "cpu", "devices": 1, **trainer}
    model = SFTModule(path=None, config=MODEL, tokenizer="lab-base")
    with contextlib.chdir(records):
        sftlab.fit(data=small_mixture(records), schedule=DMT(k=0.5, steps=1), model=model, trainer=options)


@pytest.mark.parametrize("devices", [[0, 5], "0,5", 0])
def test_devices_that_are_not_there_leave_no_folder(records, devices):
    with pytest.raises((ValueError, TypeError, MisconfigurationException), match="devices"):
        sftlab_fit(records, devices=devices)
    assert not list((records / "lightning_logs").iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"callbacks": [EarlyStopping("absent")]}, "nobody logs 'absent'"),
        ({"limit_train_batches": 2}, "limit_train_batches"),
        ({"callbacks": [ModelCheckpoint(filename="../../x")]}, "ModelCheckpoint.filename: '../../x' leads out"),
        ({"callbacks": [ModelCheckpoint(filename="/tmp/x")]}, "leads out"),
        ({"logger": CSVLogger("own", name="../x")}, "CSVLogger.name: '../x' leads out"),
        ({"logger": CSVLogger("own", version="..")}, "CSVLogger.version: '..' leads out"),
        ({"logger": TensorBoardLogger("own", name="", sub_dir="a/../../x")}, "TensorBoardLogger.sub_dir"),
        ({"profiler": SimpleProfiler(filename="../x")}, "SimpleProfiler.filename"),
        ({"callbacks": [ModelCheckpoint(filename="{step")]}, "no name can be made of '{step' (expected '}'"),
        ({"callbacks": [ModelCheckpoint(filename="{step:0999999999d}")]}, "a number in it is too wide"),
        ({"callbacks": [ModelCheckpoint(filename="{step:q}")]}, "no name can be made"),
        ({"callbacks": [ModelCheckpoint(filename="a\0b")]}, "holds characters that cannot be seen"),
        ({"logger": TensorBoardLogger("own", name="x" * 300)}, "is longer than 100 bytes"),
        ({"logger": CSVLogger("own", flush_logs_every_n_steps=0)}, "flush_logs_every_n_steps: 0 must be"),
        ({"callbacks": [LearningRateMonitor(), LearningRateMonitor(), Timer(), Timer()]}, "save their state as one"),
    ],
)
def test_what_is_refused_leaves_no_folder_and_nothing_elsewhere(records, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        sftlab_fit(records, **options)
    assert not list((records / "lightning_logs").iterdir())
    before = [("dirpath", "../x"), ("filename", "a/../../x"), ("name", ".."), ("save_dir", "..\\x")]
    for key, value in before:
        item = {"class_path": "my.Own", "init_args": {key: value}}
        for trainer in ({"callbacks": [item]}, {"logger": item}, {"profiler": item}):
            assert leaving_places(trainer) and not leaving_places({"callbacks": [{"class_path": "my.Own"}]})


def test_a_folder_in_which_something_was_trained_stays_whatever_is_raised(records):
    with pytest.raises(KeyError):
        sftlab_fit(records, callbacks=[LambdaCallback(on_train_batch_end=lambda *_: {}["absent"])])
    [run] = (records / "lightning_logs").iterdir()
    assert (run / "state.json").exists()


def test_places_that_can_be_written_are_left_as_they_are(tmp_path):
    refuse_places(
        [ModelCheckpoint(str(tmp_path / "a" / "b")), SimpleNamespace(save_dir="s3://bucket/x"), None, ModelCheckpoint()]
    )
    assert not list(tmp_path.iterdir())


def test_every_callback_that_lightning_ships_works_or_is_refused(records):
    import lightning.pytorch.callbacks as shipped

    abstract = {"Callback", "Checkpoint", "ProgressBar", "BasePredictionWriter"}
    tried = [
        shipped.DeviceStatsMonitor(cpu_stats=False),
        never_better(),
        shipped.LambdaCallback(on_train_start=lambda *_: None),
        shipped.LearningRateMonitor("step"),
        shipped.ModelCheckpoint(monitor="val/loss/general", save_top_k=1),
        shipped.ModelSummary(),
        shipped.OnExceptionCheckpoint(str(records)),
        shipped.ThroughputMonitor(batch_size_fn=lambda batch: len(batch.lengths_D)),
        shipped.TQDMProgressBar(),
        shipped.Timer(duration={"hours": 1}),
    ]
    others = {"RichModelSummary", "RichProgressBar"}  # of the same kinds
    names = {type(callback).__name__ for callback in tried} | abstract | others
    refused = {
        name
        for name in set(shipped.__all__) - names
        if any(above.__name__ in REFUSED for above in getattr(shipped, name).__mro__)
    }
    assert names | refused == set(shipped.__all__), "Lightning ships a new callback: try it or refuse it"
    schedule = DMT(k=0.5, steps=5, val_every_n_steps=2)
    options = {"enable_progress_bar": True, "enable_checkpointing": True, "log_every_n_steps": 1}
    _, lines = small_fit(records, schedule, small_mixture(records), *tried, **options)
    assert any("lr-AdamW/pg1" in line for line in lines)
    assert (records / "stages" / "1-general").is_dir()


@pytest.mark.parametrize(
    "name", ["StochasticWeightAveraging", "lightning.pytorch.callbacks.ModelPruning", "WeightAveraging"]
)
def test_a_callback_that_is_refused_is_told_with_the_other_problems_of_a_config(name):
    item = {"class_path": name, "init_args": {}}
    for callbacks in (item, [item], [{"class_path": "Timer"}, item]):
        config = {"data": {}, "schedule": "MultiTask", "trainer": {"callbacks": callbacks, "max_stepz": 3}}
        problems = config_problems(config)
        assert any("max_stepz" in problem for problem in problems)
        assert sum(f"{name.rpartition('.')[2]} is refused" in problem for problem in problems) == 1
    added = json.dumps({"class_path": name, "init_args": {"swa_lrs": 0.1, "pruning_fn": "l1_unstructured"}})
    words = ["--config", "sftlab:dmt", f"--trainer.callbacks+={added}"]
    with warnings.catch_warnings(), pytest.raises(ValueError, match="is refused"):
        warnings.simplefilter("error")
        parse_objects(words)
