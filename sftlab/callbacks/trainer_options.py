"""The options of Lightning's Trainer: which work as usual, and which the plan decides, with what to use instead.

A plan fixes what every optimizer step trains, so options that would change the rows, the steps or their order are
refused. Options that would have no effect are refused too, rather than silently ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger

from sftlab.bounds import within

AUTO = r"auto(?::(\d{1,6}(?:\.\d{1,3})?)GiB)?"  # of accumulate_grad_batches, with the memory of a process


@dataclass(frozen=True)
class Option:
    """One option of the Trainer.

    Attributes:
        words: What it does here; for a refused option, why and what to use instead.
        neutral: Values that have no effect; None means that every value is accepted.
        kept_at: The attribute of a built Trainer that holds it.
        least: The smallest number that makes sense.
        most: The largest.
        is_whole: Only whole numbers make sense.
        pattern: Texts that are taken too.
    """

    words: str
    neutral: tuple[Any, ...] | None = None
    kept_at: Callable[[Any], Any] | None = None
    least: float | None = None
    most: float = 10**9
    is_whole: bool = True
    pattern: str | None = None

    @property
    def is_refused(self) -> bool:
        """Return whether values other than the neutral ones are refused."""
        return self.neutral is not None

    def problem(self, name: str, value: Any) -> str | None:
        """Return what is wrong with a value; None if nothing is."""
        if self.neutral is not None:
            # 1 and 1.0 differ: one batch and all of them.
            asks = not any(type(value) is type(one) and value == one for one in (None, *self.neutral))
            return f"trainer.{name}: {value!r} is refused: {self.words}" if asks else None
        if self.least is None or value is None:
            return None
        if self.pattern is not None and isinstance(value, str):
            is_taken = re.fullmatch(self.pattern, value) is not None
            return None if is_taken else f"trainer.{name}: {value!r} is neither a number nor auto nor auto:8GiB"
        try:
            within(f"trainer.{name}", value, self.least, self.most, self.is_whole)
        except ValueError as error:
            return str(error)
        return None


_VAL_STEPS = "stages are validated at their ends, and every n steps with schedule.val_every_n_steps: n"
_ENDS = "a stage ends where its budget does (schedule.epochs, steps or supervised_tokens), or early by EarlyStopping"
_NO_TEST = "it would have no effect: fit neither tests nor predicts; use the evaluate command"
_SPAWNED = "processes are started as commands; use strategy: ddp or fsdp2"

OPTIONS: dict[str, Option] = {
    "accelerator": Option("As in Lightning."),
    "strategy": Option(
        "auto, ddp, fsdp2 (FSDP, on GPUs and CPUs; FSDP2Strategy by class path has options), or a strategy by class "
        "path that starts commands."
    ),
    "devices": Option("As in Lightning; it never changes what a step trains."),
    "num_nodes": Option("As in Lightning; it never changes what a step trains.", least=1, most=10_000),
    "precision": Option("As in Lightning; by default bf16-mixed if the hardware is fast at it, else 32-true."),
    "logger": Option("Added to ours; false drops TensorBoard, never metrics.jsonl."),
    "callbacks": Option("Added to ours; one of the same kind as ours replaces it, except for checkpoints."),
    "fast_dev_run": Option(
        "it saves nothing and fits no plan; use schedule.epochs: null with schedule.steps: 1 for one step of every "
        "stage with its export and scores, or trainer.max_steps: n for the first n steps",
        (False, 0), lambda trainer: trainer.fast_dev_run,
    ),
    "max_epochs": Option(
        "the plan decides: epochs are a stage's budget, schedule.epochs or per_stage; trainer.max_steps cuts a run",
        (-1,), lambda trainer: None if trainer.max_epochs == 1000 else trainer.max_epochs,  # Lightning's default
    ),
    "min_epochs": Option(_ENDS, (0,), lambda trainer: trainer.fit_loop.min_epochs),
    "max_steps": Option("Cuts this call short; --ckpt_path last resumes to the plan's end.", least=-1),
    "min_steps": Option(_ENDS, (0,), lambda trainer: trainer.fit_loop.min_steps),
    "max_time": Option("Cuts this call short at the end of a step; --ckpt_path last resumes."),
    "limit_train_batches": Option(
        "it would train other rows than the plan's; use trainer.max_steps: n, schedule.steps: n or a smaller "
        "data.abilities.<name>.fraction",
        (1.0,), lambda trainer: trainer.limit_train_batches,
    ),
    "limit_val_batches": Option("As in Lightning: losses of the first validation batches alone; 0 validates nothing.",
                                least=0, is_whole=False),
    "limit_test_batches": Option(_NO_TEST, (1.0,), lambda trainer: trainer.limit_test_batches),
    "limit_predict_batches": Option(_NO_TEST, (1.0,), lambda trainer: trainer.limit_predict_batches),
    "overfit_batches": Option(
        "it would train other rows than the plan's; use a small data.abilities.<name>.fraction and schedule.epochs",
        (0, 0.0), lambda trainer: trainer.overfit_batches,
    ),
    "val_check_interval": Option(_VAL_STEPS, (1.0,), lambda trainer: trainer.val_check_interval),
    "check_val_every_n_epoch": Option(_VAL_STEPS, (1,), lambda trainer: trainer.check_val_every_n_epoch),
    "num_sanity_val_steps": Option("As in Lightning; 0 by default. Its losses are not logged.", least=-1),
    "log_every_n_steps": Option(
        "Optimizer steps from one point of the curves to the next, 10 by default; stage ends have one too. train/loss "
        "is the mean over all steps since the point before.",
        least=0,
    ),
    "enable_checkpointing": Option("false writes no checkpoints inside stages; stage ends always have one."),
    "enable_progress_bar": Option("false shows only the plan and the results."),
    "enable_model_summary": Option("As in Lightning; false by default."),
    "accumulate_grad_batches": Option(
        "Micro-batches per step: less memory, and never another step. auto: as few as fit by the estimate; auto:8GiB "
        "states the memory of a process.", least=1, most=10**6, pattern=AUTO,
    ),
    "gradient_clip_val": Option("As in Lightning; 1.0 by default, 0 for none.", least=0, is_whole=False),
    "gradient_clip_algorithm": Option("As in Lightning."),
    "deterministic": Option("As in Lightning."),
    "benchmark": Option("As in Lightning."),
    "inference_mode": Option("As in Lightning."),
    "use_distributed_sampler": Option(
        "it would shuffle the plan; each rank takes its own part of every step as it is", (False,)
    ),
    "profiler": Option("As in Lightning; its report is printed at the end."),
    "detect_anomaly": Option("As in Lightning."),
    "barebones": Option(
        "it would log and save nothing; use enable_progress_bar: false, logger: false, enable_checkpointing: false",
        (False,), lambda trainer: trainer.barebones,
    ),
    "plugins": Option("As in Lightning."),
    "sync_batchnorm": Option("As in Lightning."),
    "reload_dataloaders_every_n_epochs": Option(
        "one loader feeds the whole plan; what comes later is a stage of its own", (0,),
        lambda trainer: trainer.reload_dataloaders_every_n_epochs,
    ),
    "default_root_dir": Option("a run's folder is lightning_logs/<name>; name it with --run", ()),
    "enable_autolog_hparams": Option("As in Lightning."),
    "model_registry": Option("checkpoints are the run's own; resume from one with --ckpt_path", ()),
}  # fmt: skip
"""By name, as in ``Trainer.__init__``."""

STRATEGIES = {
    "ddp_spawn": _SPAWNED,
    "ddp_fork": _SPAWNED,
    "ddp_notebook": _SPAWNED,
    "fsdp": "it needs GPUs and shards in another way; use strategy: fsdp2",
    "fsdp_cpu_offload": "use FSDP2Strategy with cpu_offload: true",
    "deepspeed": "use strategy: fsdp2, which shards weights, gradients and optimizer state as ZeRO 3 does",
    "model_parallel": "its ranks may share one part of the data (tensor parallelism), and here each has its own; use "
    "strategy: fsdp2",
    "xla": "a plan has never been carried out on TPUs; use auto, ddp or fsdp2",
}
"""Refused strategies, by the beginning of their names."""
_CLASSES = {
    "FSDPStrategy": "fsdp", "DeepSpeedStrategy": "deepspeed", "ModelParallelStrategy": "model_parallel",
    "XLAStrategy": "xla", "XLAFSDPStrategy": "xla", "SingleDeviceXLAStrategy": "xla",
}  # fmt: skip
"""Classes of refused strategies, and their names."""


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the Trainer's options of a config, each with what to use instead."""
    found = [OPTIONS[name].problem(name, value) for name, value in options.items() if name in OPTIONS]
    strategy = options.get("strategy") or ""
    if isinstance(strategy, Mapping):
        strategy = str(strategy.get("class_path", "")).rsplit(".", 1)[-1]
    name = _CLASSES.get(str(strategy), str(strategy))
    refused = [words for one, words in STRATEGIES.items() if name == one or name.startswith(f"{one}_")]
    found += [f"trainer.strategy: {strategy!r} is refused: {words}" for words in refused[:1]]
    if options.get("max_steps") == 0:
        found.append("trainer.max_steps: 0 trains nothing; give at least 1, or -1 for the whole plan")
    found.append(devices_problem(options.get("devices"), options.get("accelerator") == "cpu"))
    found.append(_time_problem(options.get("max_time")))
    return [problem for problem in found if problem]


def devices_problem(devices: Any, is_cpu: bool) -> str | None:
    """Return what is wrong with a number of devices, which on a CPU are processes."""
    is_number = type(devices) is int or (isinstance(devices, str) and re.fullmatch(r"-?\d{1,18}", devices.strip()))
    if not is_number:
        return None
    number, cores = int(devices), os.cpu_count() or 1
    if number == 0 or number < -1:
        return f"trainer.devices: {devices} is not a number of devices; give 1 or more, -1 or auto for all"
    if is_cpu and number > (most := max(16, 2 * cores)):
        return f"trainer.devices: {number:,} processes on {cores} cores; give at most {most}, one is enough on a CPU"
    return None


def _time_problem(value: Any) -> str | None:
    """Return what is wrong with a time limit."""
    if value is None:
        return None
    wrong = f"trainer.max_time: {value!r} is not a time to train in; give DD:HH:MM:SS, such as 00:12:00:00"
    if isinstance(value, str):
        parts = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip())
        return wrong if parts is None or not any(map(int, parts.groups())) else None
    try:
        limit = value if isinstance(value, timedelta) else timedelta(**value)
    except (TypeError, OverflowError):
        return wrong
    return wrong if limit <= timedelta() else None


def refuse_options(trainer: Trainer) -> None:
    """Check a Trainer that was already built.

    Raises:
        ValueError: Options are set that the plan decides; the message lists all, each with what to use instead.
    """
    kept = {name: option.kept_at(trainer) for name, option in OPTIONS.items() if option.kept_at is not None}
    if kept["fast_dev_run"] or kept["barebones"]:  # they configure other strategies
        kept = {name: kept[name] for name in ("fast_dev_run", "barebones")}
    kept["accumulate_grad_batches"] = trainer.accumulate_grad_batches
    kept["strategy"] = _strategy_of(trainer)
    if problems := [*option_problems(kept), *_logger_problems(trainer.loggers)]:
        raise ValueError("\n  ".join(problems))


def _logger_problems(loggers: Sequence[Any]) -> list[str]:
    """Return what would make loggers fail: MLflow's file store, or a line every 0 steps."""
    is_lost = any(isinstance(logger, MLFlowLogger) and logger.save_dir is not None for logger in loggers)
    what = (
        "MLflow's store of files cannot hold train/loss beside train/loss/math; give tracking_uri: sqlite:///mlflow.db"
    )
    found = [f"trainer.logger: {what}, or a server's address"] if is_lost else []
    for logger in (logger for logger in loggers if isinstance(logger, CSVLogger)):
        if (every := logger._flush_logs_every_n_steps) < 1:
            found.append(f"trainer.logger: CSVLogger.flush_logs_every_n_steps: {every} must be 1 or more")
    return found


def _strategy_of(trainer: Trainer) -> str:
    """Return the name by which a strategy is refused, or its class's name; FSDP2Strategy is not tensor parallelism."""
    strategy: Any = trainer.strategy
    names = [cls.__name__ for cls in type(strategy).__mro__]
    if type(strategy.launcher).__name__ == "_MultiProcessingLauncher":
        return "ddp_spawn"
    refused = [name for name in names if name in _CLASSES and "FSDP2Strategy" not in names]
    return refused[0] if refused else names[0]
