"""Every option of Lightning's Trainer has a place: it works, or is refused with what to use instead."""

import inspect
import json
from contextlib import nullcontext
from datetime import timedelta

import pytest
from fitting import write_records
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from small import small_fit, small_mixture

from sftlab import MultiTask, SFTModule
from sftlab.callbacks.trainer_options import OPTIONS, option_problems, refuse_options
from sftlab.model.parallel import FSDP2Strategy

SIGNATURE = inspect.signature(Trainer.__init__).parameters
GIVEN = sorted(set(SIGNATURE) - {"self"})
# A value that asks for something, of each option that is refused.
ASKS = {"fast_dev_run": True, "max_epochs": 1, "min_epochs": 1, "min_steps": 5, "limit_train_batches": 1,
        "limit_test_batches": 1, "limit_predict_batches": 1, "overfit_batches": 2, "val_check_interval": 5,
        "check_val_every_n_epoch": 2, "use_distributed_sampler": True, "barebones": True,
        "reload_dataloaders_every_n_epochs": 1, "default_root_dir": "x", "model_registry": "x"}  # fmt: skip
# Values of the others that a small run on a CPU is tried with, all together.
TRIED = {"accelerator": "cpu", "strategy": "auto", "devices": 1, "num_nodes": 1, "precision": "32-true",
         "max_time": "00:01:00:00", "limit_val_batches": 1, "num_sanity_val_steps": 1, "log_every_n_steps": 2,
         "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": True,
         "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value",
         "deterministic": True, "benchmark": False, "inference_mode": False, "profiler": "simple",
         "detect_anomaly": True, "plugins": [], "sync_batchnorm": True, "enable_autolog_hparams": False,
         "max_steps": 3}  # fmt: skip
OURS = {"logger", "callbacks"}  # tested by themselves


@pytest.mark.parametrize("name", GIVEN)
def test_every_option_has_a_place_and_is_tried(name):
    assert name in OPTIONS, f"Lightning has a new option {name}: give it a place in trainer_options.OPTIONS"
    assert (name in ASKS) + (name in TRIED) + (name in OURS) == 1
    assert (name in ASKS) == OPTIONS[name].is_refused
    default = SIGNATURE[name].default
    if name != "use_distributed_sampler":  # Lightning's default shuffles, and the CLI's does not
        assert not option_problems({name: default}), "Lightning's default is always taken"


@pytest.mark.parametrize("name", sorted(ASKS))
def test_what_the_plan_decides_is_refused_with_what_to_use_instead(name):
    (problem,) = option_problems({name: ASKS[name]})
    assert problem.startswith(f"trainer.{name}: {ASKS[name]!r} is refused: ")
    kept_at = OPTIONS[name].kept_at
    if kept_at is not None:  # a Trainer that was built with it is seen through too
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False) if name == "barebones" else (
            Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **{name: ASKS[name]})
        )  # fmt: skip
        assert name == "barebones" or OPTIONS[name].problem(name, kept_at(trainer))
        plain = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        assert OPTIONS[name].problem(name, kept_at(plain)) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_clip_val": -1.0}, "gradient_clip_val"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches"),
        ({"max_steps": 0}, "trains nothing"),
        ({"log_every_n_steps": -3}, "log_every_n_steps"),
        ({"strategy": "ddp_spawn"}, "ddp or fsdp2"),
        ({"strategy": "deepspeed_stage_3"}, "fsdp2"),
        ({"strategy": {"class_path": "DeepSpeedStrategy"}}, "fsdp2"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}}, "fsdp2"),
        ({"strategy": {"class_path": "ModelParallelStrategy", "init_args": {"tensor_parallel_size": 2}}}, "fsdp2"),
        ({"strategy": "xla"}, "TPU"),
        ({"devices": 0}, "trainer.devices: 0"),
        ({"devices": -2}, "trainer.devices: -2"),
        ({"devices": 1000, "accelerator": "cpu"}, "trainer.devices: 1,000 processes on"),
        ({"devices": "999999999", "accelerator": "cpu"}, "trainer.devices: 999,999,999 processes on"),
        ({"limit_val_batches": -1}, "trainer.limit_val_batches"),
        ({"max_time": "1 hour"}, "give DD:HH:MM:SS"),
        ({"max_time": "00:00:00:00"}, "trainer.max_time"),
        ({"max_time": {"seconds": -5}}, "trainer.max_time"),
        ({"max_time": {"weeks": 10**12}}, "trainer.max_time"),
        ({"max_time": timedelta(0)}, "trainer.max_time"),
        ({"max_time": {"fortnights": 1}}, "trainer.max_time"),
    ],
)
def test_numbers_and_strategies_without_sense_are_refused(options, said):
    assert said in " ".join(option_problems(options))


class Sharded(FSDP2Strategy):
    """A user's own."""


def test_options_that_make_sense_are_no_problem():
    for options in (
        {"max_time": "00:12:00:00"},
        {"max_time": {"minutes": 5}},
        {"max_time": timedelta(hours=1)},
        {"devices": -1, "limit_val_batches": 0.5},
        {"devices": "auto", "limit_val_batches": 3},
        {"devices": [0, 1]},
    ):
        assert not option_problems(options)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (ModelParallelStrategy(), "tensor parallelism"),
        (DDPStrategy(start_method="spawn"), "started as commands"),
        (DDPStrategy(), None),
        (FSDP2Strategy(), None),
        (Sharded(), None),
        ("auto", None),
    ],
)
def test_strategies_that_a_plan_cannot_follow_are_refused_in_a_trainer_that_was_built_too(strategy, said):
    options = {"accelerator": "cpu", "devices": 1 if strategy == "auto" else 2, "logger": False}
    trainer = Trainer(strategy=strategy, enable_checkpointing=False, **options)
    with nullcontext() if said is None else pytest.raises(ValueError, match=f"trainer.strategy: .*{said}"):
        refuse_options(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"learning_rate": 2.0},
        {"warmup_ratio": 2.0},
        {"weight_decay": -0.1},
    ],
)
def test_numbers_of_the_model_without_sense_are_refused_by_their_key(options):
    with pytest.raises(ValueError, match=f"model.{next(iter(options))}"):
        SFTModule(**options)


def test_a_model_from_scratch_leaves_out_no_path_in_silence():
    config = {"hidden_size": 16}
    with pytest.raises(ValueError, match=r"model\.path: 'some/model' and model\.config are both there"):
        SFTModule("some/model", config, "lab-base")
    assert SFTModule(config=config, tokenizer="lab-base").config == config  # the path is the default's


def test_all_other_options_together_train_what_the_ledger_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    _, lines = small_fit(tmp_path, MultiTask(steps=5), small_mixture(tmp_path), **TRIED)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    assert checkpoint.name == "step=000003.ckpt"
    assert json.dumps(lines, allow_nan=False)


@pytest.mark.parametrize(("uri", "is_refused"), [("file:./mlruns", True), ("sqlite:///mlflow.db", False)])
def test_a_store_that_cannot_hold_our_names_is_refused_before_training(uri, is_refused):
    logger = MLFlowLogger.__new__(MLFlowLogger)  # made without the package mlflow, which nothing here calls
    logger._tracking_uri = uri
    trainer = Trainer(accelerator="cpu", max_epochs=-1, logger=False, **{"use_distributed_sampler": False})
    trainer.loggers = [logger]
    with pytest.raises(ValueError, match=r"sqlite:///mlflow\.db") if is_refused else nullcontext():
        refuse_options(trainer)
