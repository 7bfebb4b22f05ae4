"""Lightning's callbacks: which are refused, what they can monitor, and when EarlyStopping ends a stage."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from sftlab.callbacks.context import RunContext
from sftlab.config import option_pairs, scalar
from sftlab.files import checked_name, write_error
from sftlab.screen import show

_AVERAGES = "stages would be exported and scored without its average; average exported stages instead"
REFUSED = {
    "WeightAveraging": _AVERAGES,
    "StochasticWeightAveraging": "it replaces the plan's learning rate; average exported stages instead",
    "BatchSizeFinder": "the plan says what a step trains; use data.batch, and accumulate_grad_batches for memory",
    "LearningRateFinder": "it trains before the plan begins; try rates with a study over model.learning_rate",
    "GradientAccumulationScheduler": "it goes by epochs, and a plan is one; use trainer.accumulate_grad_batches",
    "BaseFinetuning": "it goes by epochs, and a plan is one; what is trained is a setting of the model",
    "ModelPruning": "it goes by epochs, and a plan is one",
    "SpikeDetection": "the plan says what a step trains; leave examples out with data.abilities.<name>.drop",
}  # fmt: skip
"""Callbacks that do not work with a plan, by the name of their class or of a base class."""
_INSIDE = ("filename", "_name", "_version", "sub_dir", "_sub_dir")  # attributes of Lightning's, as it keeps them
_SEPARATORS, _ABSOLUTE = re.compile(r"[/\\]"), re.compile(r"[/\\]|[A-Za-z]:[/\\]")
_LEAVES = "leads out of its folder: give a name; another folder is a dirpath or save_dir, from / on"
_OURS = ("train/", "val/", "stage/", "data/", "perf/")


def refuse_callbacks(callbacks: Iterable[Callback]) -> None:
    """Check callbacks before there is a Trainer: some do their work, or fail, when the Trainer sets them up.

    Raises:
        ValueError: Some are refused; the message lists all.
    """
    if problems := [words for callback in callbacks if (words := _refused(callback))]:
        raise ValueError("\n  ".join(problems))


def refused_by_name(given: Any) -> list[str]:
    """Return which callbacks of a config are refused, by their class paths, without reading all of their arguments."""
    items = given if isinstance(given, list) else [given]
    paths = [str(item.get("class_path")) if isinstance(item, dict) else str(item) for item in items]
    names = [path.rpartition(".")[2] for path in paths]
    return [f"trainer.callbacks: {name} is refused: {REFUSED[name]}" for name in names if name in REFUSED]


def refused_in_words(arguments: list[str]) -> list[str]:
    """Like ``refused_by_name``, for callbacks that a command line adds."""
    added = [scalar(value) for name, value in option_pairs(arguments) if name == "trainer.callbacks+"]
    return [problem for given in added for problem in refused_by_name(given)]


def leaving_places(options: Mapping[str, Any]) -> list[str]:
    """Return which arguments of a config's callbacks, loggers and profiler point outside the folder they belong in."""
    found = []
    for kind in ("callbacks", "logger", "profiler"):
        given = options.get(kind)
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, dict) and isinstance(arguments := item.get("init_args"), dict):
                name = str(item.get("class_path")).rpartition(".")[2]
                found += [
                    f"trainer.{kind}: {name}.{key}: {value!r} {_LEAVES}"
                    for key, value in arguments.items()
                    if isinstance(value, str) and ".." in _SEPARATORS.split(value)
                ]
    return found


def _bad_names(one: object) -> list[str]:
    """Return the attributes that name a file or folder inside another but point outside it, or are no valid name."""
    found = []
    for attribute in _INSIDE:
        if not isinstance(value := getattr(one, attribute, None), str) or not value:
            continue
        where = f"trainer: {type(one).__name__}.{attribute.lstrip('_')}"
        parts = [part for part in _SEPARATORS.split(value) if part]
        if ".." in parts or _ABSOLUTE.match(value):
            found.append(f"{where}: {value!r} {_LEAVES}")
            continue
        try:
            for part in parts:
                checked_name(where, part)
            if isinstance(one, ModelCheckpoint) and attribute == "filename":
                _try_format(one, where, value)
        except ValueError as error:
            found.append(str(error))
    return found


def _try_format(one: ModelCheckpoint, where: str, value: str) -> None:
    """Format a name once, as it will be formatted when training has been running for long.

    Raises:
        ValueError: None can be made.
    """
    reason = "a number in it is too wide" if re.search(r"\d{4}", "".join(re.findall(r"\{[^}]*:[^}]*", value))) else ""
    try:
        if not reason:
            one.format_checkpoint_name({"step": torch.tensor(1), "epoch": torch.tensor(0)})
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        reason = str(error)
    if reason:
        raise ValueError(f"{where}: no name can be made of {value!r} ({reason}); write it like {{step:06d}}-{{epoch}}")


def refuse_places(named: Iterable[object]) -> None:
    """Check the folders that the user's profiler, callbacks and loggers write to: some are first used at the end.

    Raises:
        ValueError: A place cannot be written, is no valid name, or is outside its folder; the message lists all.
    """
    problems = []
    for one in named:
        problems += _bad_names(one)
        for attribute in ("dirpath", "save_dir"):
            place = getattr(one, attribute, None)
            if not isinstance(place, (str, Path)) or not str(place) or "://" in str(place):
                continue
            if error := write_error(Path(place)):
                what = f"trainer: {type(one).__name__}.{attribute}"
                problems.append(f"{what}: {place} cannot be written ({error.strerror}); name another folder")
    if problems:
        raise ValueError("\n  ".join(problems))


def _refused(callback: Callback) -> str:
    words = next((REFUSED[cls.__name__] for cls in type(callback).__mro__ if cls.__name__ in REFUSED), "")
    return words and f"trainer.callbacks: {type(callback).__name__} is refused: {words}"


def check_callbacks(context: RunContext, validates_inside: bool) -> None:
    """Check the callbacks before training.

    Args:
        context: The run.
        validates_inside: Whether stages are also validated inside, not only at their ends.

    Raises:
        ValueError: A callback is refused, monitors a metric that is not logged, or would never do anything.
    """
    problems = []
    for callback in cast(Any, context.trainer).callbacks:
        name = type(callback).__name__
        if words := _refused(callback):
            problems.append(words)
        elif (monitor := getattr(callback, "monitor", None)) and (problem := _unknown(context, str(monitor))):
            problems.append(f"trainer.callbacks: {name}.monitor: {problem}")
        elif isinstance(callback, EarlyStopping):
            if not context.module.val_abilities or not context.trainer.enable_validation:
                problems.append(
                    f"trainer.callbacks: {name} looks after each validation, and there is none: hold some examples out "
                    "with data.abilities.<name>.val_fraction"
                )
            elif not validates_inside:
                problems.append(
                    f"trainer.callbacks: {name} would never stop a stage: it is validated at its end alone; set "
                    "schedule.val_every_n_steps"
                )
    if problems:
        raise ValueError("\n  ".join(problems))
    trainer = cast(Any, context.trainer)
    refuse_places([trainer.profiler, *trainer.callbacks, *trainer.loggers])
    if context.trainer.is_global_zero:
        for line in _untrained(context):
            show(line)


def _untrained(context: RunContext) -> list[str]:
    """Return a line for each stage that EarlyStopping may end by an ability which the stage does not train."""
    watched = [cb.monitor for cb in cast(Any, context.trainer).callbacks if isinstance(cb, EarlyStopping)]
    stages = [planned.stage for planned in context.plan.stages]
    return [
        f"Note: EarlyStopping watches {monitor}, and stage {stage.name} does not train {ability}: it stops there "
        f"when {ability} gets no better."
        for monitor in watched
        if (ability := str(monitor).removeprefix("val/loss/")) in context.plan.abilities
        for stage in stages
        if not stage.fractions.get(ability)
    ]


def _unknown(context: RunContext, monitor: str) -> str | None:
    known = [f"train/loss/{name}" for name in context.plan.abilities]
    known += [f"val/loss/{name}" for name in context.module.val_abilities]
    known += ["train/loss", "train/learning_rate", "train/gradient_norm", "stage/index", "step", "epoch"]
    known += ["perf/tokens_per_second", "perf/seconds_per_step", "perf/memory_gib", "perf/packing_fill"]
    known += [f"data/{kind}/{name}" for kind in ("share", "examples_seen") for name in context.plan.abilities]
    others = [context.module, *cast(Any, context.trainer).callbacks]
    has_others = any(not type(one).__module__.startswith(("sftlab.", "lightning.")) for one in others)
    if monitor in known or monitor.startswith("score/") or (has_others and not monitor.startswith(_OURS)):
        return None
    near = difflib.get_close_matches(monitor.replace("val_loss", "val/loss/"), known, n=3, cutoff=0.3)
    return f"nobody logs {monitor!r}; there is {', '.join(near or known[:4])}"


class EarlyStoppers:
    """The EarlyStopping callbacks of a run: each is checked after every validation and starts afresh in each stage."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]

    def settings(self) -> list[str]:
        """Return what decides when they stop, as text."""
        names = ("monitor", "min_delta", "patience", "mode", "stopping_threshold", "divergence_threshold")
        return [f"{type(one).__name__} {[getattr(one, name) for name in names]}" for one in self.callbacks]

    def look_after_validation(self) -> None:
        """Make them check after each validation, not at the end of the epoch, which is the end of the plan."""
        for stopper in self.callbacks:
            stopper._check_on_train_epoch_end = False

    def reason(self) -> str | None:
        """Return why one of them wants to stop; None if none does."""
        stopped = [one for one in self.callbacks if one.stopping_reason != EarlyStoppingReason.NOT_STOPPED]
        return next((f"{one.monitor}: {one.stopping_reason.name.lower().replace('_', ' ')}" for one in stopped), None)

    def begin_anew(self) -> None:
        """Forget what they saw in the previous stage."""
        for stopper in self.callbacks:
            infinite = torch.tensor(torch.inf)
            stopper.best_score = infinite if stopper.mode == "min" else -infinite
            stopper.wait_count = stopper.stopped_epoch = 0
            stopper.stopping_reason, stopper.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
