"""The commands ``fit`` and ``study`` as Python functions that return what was trained.

run = sftlab.fit("sftlab:dmt", {"schedule.k": 0.25})
run = sftlab.fit(data=MixtureData(...), schedule=DMT(k=0.25), model=SFTModule(...), trainer={"devices": 1})
study = sftlab.study("sftlab:studies/rq3", seeds=[1, 2])
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftlab.files import checked_name
from sftlab.processes import is_follower
from sftlab.run.folder import FOLDER_VARIABLE, LOGS, begin, begun, end, new_run_folder, release, resumed
from sftlab.run.record import Run, StudyRuns
from sftlab.shipped import config_path
from sftlab.yaml_files import read_yaml

if TYPE_CHECKING:
    from sftlab import MixtureData, PlannedData, SFTModule, StageSchedule

Config = str | Path | Mapping[str, Any]
_RANKS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # set by Lightning
_num_trainings = 0  # trainings of this process


def fit(
    config: Config | Sequence[Config] | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    data: MixtureData | PlannedData | None = None,
    schedule: StageSchedule | None = None,
    model: SFTModule | None = None,
    trainer: Mapping[str, Any] | None = None,
    run: str = "",
    ckpt_path: str | None = None,
    seed: int = 0,
) -> Run:
    """Train from a config or from objects, with the same folder, loggers and callbacks as the command ``fit``.

    On several devices, the other processes of a config are started as commands. Those of objects run the script again
    up to this call and end there, so that what follows is done once; such a call must be the script's first training.

    Args:
        config: A file, ``sftlab:dmt``, a mapping, or a list of these, merged in order.
        changes: Changes to the config by dotted key: {"schedule.k": 0.25}.
        data: The datamodule, instead of a config.
        schedule: With ``data``: the schedule.
        model: With ``data``: the model.
        trainer: With ``data``: arguments of Lightning's Trainer; its callbacks and loggers are added to the usual ones.
        run: Name of the run's folder in lightning_logs/.
        ckpt_path: A checkpoint to resume from, or ``last``.
        seed: With ``data``: seed of subsets, order and initial weights; a config has its own.

    Returns:
        The finished run.

    Raises:
        ValueError: Both or neither of config and objects are given, or the command would refuse the arguments.
    """
    objects = (data, schedule, model)
    if (config is None) == all(part is None for part in objects):
        raise ValueError("fit: give a config, or data, schedule and model")
    global _num_trainings
    _num_trainings += 1
    with _own_folder(), _own_processes():
        if config is not None:
            if trainer:
                raise ValueError('fit: with a config, options of the Trainer are changes: {"trainer.devices": 2}')
            return _fit_config(config, changes or {}, run, ckpt_path)
        if None in objects or changes:
            raise ValueError("fit: without a config, give data, schedule and model, and no changes")
        return _fit_objects(data, schedule, model, dict(trainer or {}), run, ckpt_path, seed)


def _fit_config(config: Config | Sequence[Config], changes: Mapping[str, Any], run: str, ckpt_path: str | None) -> Run:
    from sftlab.cli import LabCLI

    given = [config] if isinstance(config, (str, Path, Mapping)) else list(config)
    with tempfile.TemporaryDirectory(prefix="sftlab-") as folder:
        files = [_config_file(each, Path(folder, f"{number}", "run.yaml")) for number, each in enumerate(given)]
        words = [word for file in files for word in ("--config", str(file))]
        words += [f"--{word}" for word in _words(changes)]
        words += ["--run", run] if run else []
        words += ["--ckpt_path", ckpt_path] if ckpt_path else []
        before, sys.argv = sys.argv, [str(Path(__file__).with_name("__main__.py")), "fit", *words]
        try:
            cli = LabCLI()
        finally:
            sys.argv = before
    return Run(cli.trainer.default_root_dir)


def _words(changes: Mapping[str, Any]) -> list[str]:
    """Write keys and values as on a command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def _config_file(config: Config, written: Path) -> Path:
    if not isinstance(config, Mapping):
        return config_path(config)
    written.parent.mkdir()
    written.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return written


def _fit_objects(
    data: Any, schedule: Any, model: Any, options: dict[str, Any], run: str, ckpt_path: str | None, seed: int
) -> Run:
    from lightning.pytorch import seed_everything

    from sftlab.callbacks.defaults import TRAINER_DEFAULTS, run_options
    from sftlab.callbacks.micro_batches import PlannedTrainer
    from sftlab.cli import quieten
    from sftlab.model.parallel import register_strategies
    from sftlab.run.launcher import watch_ranks

    quieten()
    register_strategies()
    seed_everything(seed, workers=True, verbose=False)
    name = run or type(schedule).__name__.lower()
    found = resumed(name, ckpt_path, is_exact=bool(run)) if ckpt_path else None
    folder = found.folder if found and found.folder else new_run_folder(name, bool(options.get("fast_dev_run")))
    begin(folder)
    options = {**TRAINER_DEFAULTS, **options}
    asked = Namespace(**{"logger": None, "callbacks": None, "precision": None, "enable_progress_bar": None,
                         "enable_checkpointing": None, "profiler": None, **options})  # fmt: skip
    with begun(folder):
        made = PlannedTrainer(**{**options, **run_options(asked, folder, schedule)})
    watch_ranks(made)
    if made.world_size > 1 and _num_trainings > 1 and not _launched_before(made):
        end(folder, 0, None)
        raise ValueError(
            "fit: other processes run this script again from its beginning, and it has trained before: train objects "
            'on several devices in a script of their own, or from a config: fit("my.yaml", {"trainer.devices": 2})'
        )
    made.fit(model, datamodule=data, ckpt_path=str(found.checkpoint) if found else None)
    if is_follower() and _is_started_by_us():
        raise SystemExit(0)  # only the script's first process continues
    plan = data.plan
    end(folder, made.global_step, None if plan.is_open else plan.num_steps)
    return Run(folder)


def _launched_before(trainer: Any) -> bool:
    """Return whether all processes of a training exist already: started by torchrun, srun or by hand."""
    return bool(trainer.strategy.cluster_environment.creates_processes_externally)


def _is_started_by_us() -> bool:
    """Return whether this process reruns a script for the process that began the run and passed the folder on."""
    return FOLDER_VARIABLE in os.environ and "LOCAL_RANK" in os.environ


@contextmanager
def _own_processes() -> Iterator[None]:
    """Remove what Lightning starts and records for one training, so that the next one does not see it."""
    outer = {name: os.environ.get(name) for name in _RANKS}
    try:
        yield
    finally:
        if outer["LOCAL_RANK"] is None and "LOCAL_RANK" in os.environ:
            import torch.distributed

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name, value in outer.items():
                os.environ.pop(name, None)
                os.environ.update({} if value is None else {name: value})


@contextmanager
def _own_folder() -> Iterator[None]:
    """Make the run's folder this process's only while it trains: the next call gets its own."""
    outer = os.environ.get(FOLDER_VARIABLE)
    try:
        yield
    finally:
        if outer is None and (mine := os.environ.get(FOLDER_VARIABLE)) is not None:
            release(Path(mine))


def study(
    config: Config,
    changes: Mapping[str, Any] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    num_workers: int = 1,
    name: str = "",
) -> StudyRuns:
    """Run what is missing of a study, and write its report.

    Args:
        config: A study file, ``sftlab:studies/rq3``, or the content of such a file as a mapping, whose ``base`` may be
            a mapping too: {"base": "my.yaml", "grid": {"k": {"keys": ["schedule.k"], "values": [0, 0.25]}}}.
        changes: Changes to every run's config by dotted key.
        seeds: Seeds, instead of the file's.
        num_workers: Number of runs at a time.
        name: Folder in lightning_logs/, instead of the file's.

    Returns:
        The study's runs and results.

    Raises:
        ValueError: The study is invalid, or runs failed.
    """
    from sftlab.commands.study import main

    with tempfile.TemporaryDirectory(prefix="sftlab-") as made:
        path = _study_file(config, Path(made))
        words = ["--config", str(path), "--num_workers", str(num_workers)]
        words += ["--seeds", ",".join(map(str, seeds))] if seeds else []
        words += ["--name", name] if name else []
        words += [f"--set.{word}" for word in _words(changes or {})]
        status = main(words)
        folder = LOGS / (name or str(read_yaml(path, "--config").get("study") or path.stem))
    if status:
        raise ValueError(f"study: not all runs of {folder} are done (status {status}); see the errors above")
    return StudyRuns(folder)


def _study_file(config: Config, folder: Path) -> Path:
    """Return the file of a study; for a mapping, write one, with its paths relative to the working folder."""
    if not isinstance(config, Mapping):
        return config_path(config)
    content = dict(config)
    for key in ("base", "needs"):
        given = content.get(key) or []
        several = given if isinstance(given, list) else [given]
        are_files = [key == "base" or isinstance(one, (str, Path)) for one in several]  # a need may be a command
        content[key] = [
            str(_config_file(one, folder / f"{key}{number}" / "base.yaml").resolve()) if is_file else one
            for number, (one, is_file) in enumerate(zip(several, are_files, strict=True))
        ]
    path = folder / f"{checked_name('study', content.get('study') or 'study')}.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value}, sort_keys=False))
    return path
