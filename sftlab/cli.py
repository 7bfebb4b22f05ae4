"""The command line of ``fit``: LightningCLI with OmegaConf, a schedule as a top-level key, and a run folder."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.enums import StrEnum
from omegaconf.errors import OmegaConfBaseException

from sftlab.callbacks import adaptive, interference, weight_change  # noqa: F401 - so that configs find them by name
from sftlab.callbacks.defaults import TRAINER_DEFAULTS, as_list, run_options
from sftlab.callbacks.micro_batches import PlannedTrainer
from sftlab.callbacks.monitors import leaving_places, refuse_callbacks, refused_by_name, refused_in_words
from sftlab.callbacks.run_config import SaveConfig
from sftlab.callbacks.schedule import StageSchedule
from sftlab.callbacks.trainer_options import option_problems
from sftlab.class_help import class_help
from sftlab.config import config_files, find_problems, lacking_parts, merged_config, of_another_tool, option_pairs
from sftlab.data.mixture import MixtureData
from sftlab.data.seed import global_seed
from sftlab.model.module import SFTModule
from sftlab.model.parallel import register_strategies
from sftlab.parser import LabParser, user_errors
from sftlab.plan import adaptive_policies, returning_policies  # noqa: F401 - as above
from sftlab.plan.plan import Plan
from sftlab.processes import is_follower
from sftlab.run.folder import CONFIG_FILE, begin, begun, end, new_run_folder, own_folder, resumed
from sftlab.run.identity import StageKey, stage_keys
from sftlab.run.launcher import watch_ranks
from sftlab.run.settings import Settings
from sftlab.screen import show
from sftlab.shipped import with_paths
from sftlab.yaml_files import read_yaml

HEADER = """Trains the stages of a schedule over a mixture of abilities.

The keys that most runs change: data.abilities (files and fractions), data.batch, schedule (class_path and k),
model.path, model.learning_rate, trainer.devices. Any key of the config can be given here too: --schedule.k 0.25.
Whether it fits into memory: sftlab plan --config FILE --hardware 8xA100-80GB (plan --help lists the devices).
"""
_FIT_HELP = {"description": HEADER, "usage": "python -m sftlab fit --config FILE [options]"}


def freeze_imports() -> None:
    """Exempt imported objects from garbage collection, which otherwise scans them again and again (4 % of the time)."""
    gc.freeze()


class LabCLI(LightningCLI):
    """``fit``: data, schedule, model and trainer from one config."""

    def __init__(self, run: bool = True) -> None:
        quieten()
        sys.argv[1:] = with_paths(sys.argv[1:])
        show_help_of_classes(sys.argv[1:])
        _refuse_problems(sys.argv[2:] if run else sys.argv[1:])
        sys.argv += callbacks_of_earlier_configs(sys.argv[1:])
        needs_docs = _only_shows(sys.argv[1:])  # parsing docstrings takes a second
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True, docstring_parse_attribute_docstrings=needs_docs)
        register_strategies()
        yaml.add_multi_representer(StrEnum, _as_text, yaml.SafeDumper)
        with user_errors():
            super().__init__(
                SFTModule,
                MixtureData,
                run=run,
                trainer_class=PlannedTrainer,
                seed_everything_default=0,
                parser_class=LabParser,
                trainer_defaults=TRAINER_DEFAULTS,
                parser_kwargs={"parser_mode": "omegaconf+", **({"fit": _FIT_HELP} if run else {})},
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
                auto_configure_optimizers=False,
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line.

        Raises:
            ValueError: A reference such as ``${oc.env:NAME}`` cannot be resolved.
        """
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            told = " ".join(str(error).split())
            raise ValueError(f"the config has a reference ${{...}} that cannot be resolved: {told}") from None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return only fit: the other commands need no Trainer."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the schedule and the run's name."""
        parser.add_subclass_arguments(StageSchedule, "schedule", required=True)
        parser.add_argument("--run", type=str | None, default=None, help="Name of the run; its config's by default.")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's hyper-parameters override the command line."""

    def instantiate_classes(self) -> None:
        """Build data, schedule, model and trainer.

        Raises:
            ValueError: A class of the config refuses its arguments, or lacks a package.
        """
        super().instantiate_classes()
        if type(seed := self._get(self.config, "seed_everything")) is int:
            self.datamodule.run_seed = seed  # rather than passed through the environment

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with its run folder, loggers and callbacks."""
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        refuse_callbacks(as_list(config.trainer.callbacks))
        with begun(self._run_folder(config)) as folder:
            try:
                trainer = super().instantiate_trainer(**kwargs, **run_options(config.trainer, folder, config.schedule))
            except TypeError as error:  # Lightning raises this for devices that the accelerator does not have
                if "`devices`" not in str(error):
                    raise
                raise ValueError(f"trainer.devices: {config.trainer.devices!r}: {error}") from error
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        callbacks.sort(key=lambda one: not isinstance(one, SaveConfig))  # other callbacks read its file
        watch_ranks(trainer)
        return trainer

    def _run_folder(self, config: Any) -> Path:
        """Return the run's folder: a resumed run keeps its own, a new run never gets an existing one."""
        files = config_files(sys.argv[2:])  # jsonargparse forgets them if a config has references
        name = config.run or (_name_of(Path(files[0])) if files else "run")
        if config.ckpt_path:
            own = own_folder(files[0] if files else "")
            found = resumed(name, config.ckpt_path, is_exact=bool(config.run), own=own)
            config.ckpt_path = self.config[self.subcommand].ckpt_path = str(found.checkpoint)
            if found.folder is not None:
                begin(found.folder)
                show(*([] if is_follower() else found.notes))
                return found.folder
        return new_run_folder(name, is_trial=bool(config.trainer.fast_dev_run))

    def after_fit(self) -> None:
        """Record in the run's folder how far training got."""
        plan = self.datamodule.plan
        num_steps = None if plan.is_open else plan.num_steps
        end(Path(self.trainer.default_root_dir), self.trainer.global_step, num_steps)


def _as_text(dumper: yaml.SafeDumper, value: StrEnum) -> yaml.Node:
    """Write an enum as text: some of Lightning's callbacks have enum defaults, which jsonargparse writes as YAML."""
    return dumper.represent_str(str(value.value))


class PlannedObjects(LabCLI):
    """Data, schedule and model of a config, without trainer and run folder."""

    _made: ClassVar[LightningArgumentParser | None] = None  # building it takes longer than planning a small run

    def __init__(self) -> None:
        super().__init__(run=False)

    def setup_parser(self, *arguments: Any) -> None:
        """Build the parser for the first config and reuse it for all others."""
        if PlannedObjects._made is None:
            super().setup_parser(*arguments)
            PlannedObjects._made = self.parser
        self.parser = PlannedObjects._made

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Also accept the keys in a run's config.yaml that only fit uses."""
        super().add_arguments_to_parser(parser)
        for name in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{name}", type=Any, default=None, help="Of fit; has no effect here.")

    def instantiate_classes(self) -> None:
        """Build what a plan needs."""
        objects = self.parser.instantiate_classes(self.config)
        self.data, self.schedule, self.model, self.trainer_arguments = (
            objects.data, objects.schedule, objects.model, vars(objects.trainer)
        )  # fmt: skip
        seed = self.config.seed_everything
        self.seed = seed if type(seed) is int else global_seed()
        self.data.run_seed = self.seed

    def stage_keys(self, plan: Plan) -> list[StageKey]:
        """Return the keys of each stage of a compiled plan."""
        settings = Settings.of_arguments(self.trainer_arguments, self.seed, [self.schedule])
        return stage_keys(self.data, self.model, plan, settings)


def parse_objects(arguments: list[str]) -> PlannedObjects:
    """Build the objects of a command line such as ``--config FILE --schedule.k 0.25``."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        return PlannedObjects()
    finally:
        sys.argv = before


def quieten() -> None:
    """Silence libraries' messages about themselves; keep warnings about the run."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for asked_for in ("profilers.profiler", "callbacks.early_stopping", "callbacks.model_summary"):
        logging.getLogger(f"lightning.pytorch.{asked_for}").setLevel(logging.INFO)
    about_themselves = "isinstance.treespec|log_every_n_steps|does not have many workers|Total length of .list."
    warnings.filterwarnings("ignore", message=f".*({about_themselves}).*")


def _only_shows(arguments: list[str]) -> bool:
    """Return whether help or the whole config is requested, which need no valid config, but all docstrings."""
    return "-h" in arguments or any(word.startswith(("--help", "--print_config")) for word in arguments)


def _refuse_problems(arguments: list[str]) -> None:
    """Report all problems of a config at once.

    Raises:
        ValueError: The config has problems.
    """
    if _only_shows(arguments):
        return
    config = merged_config(arguments)
    if "base" in config and "data" not in config:
        raise ValueError(
            "--config: this is a study, not a config of fit; run it with the study command, or give one of the configs "
            "that its runs have in lightning_logs/<study>/configs/"
        )
    if found := [*config_problems(config), *refused_in_words(arguments)]:
        raise ValueError("\n  ".join([f"the config has {len(found)} problem(s):", *found]))


def callbacks_of_earlier_configs(arguments: list[str]) -> list[str]:
    """Return options that add the callbacks of earlier configs: jsonargparse keeps only the last config's list."""
    files = [read_yaml(Path(file), "--config") for file in config_files(arguments)]
    lists = [found for file in files if (found := (file.get("trainer") or {}).get("callbacks"))]
    known = [item for found in lists[-1:] for item in (found if isinstance(found, list) else [found])]
    words = []
    for item in [item for found in lists[:-1] for item in (found if isinstance(found, list) else [found])]:
        word = f"--trainer.callbacks+={json.dumps(item)}"
        if item not in known and word not in arguments:
            known.append(item)
            words.append(word)
    return words


ROOTS = {"data": MixtureData, "schedule": StageSchedule, "model": SFTModule, "trainer": PlannedTrainer}


def show_help_of_classes(arguments: list[str]) -> None:
    """Print the help and exit if an argument such as ``--schedule.help DMT`` is given."""
    for name, value in option_pairs(arguments):
        if name.endswith(".help"):
            show(class_help(name.removesuffix(".help"), value, ROOTS))
            sys.exit(0)


def config_problems(config: dict[str, Any]) -> list[str]:
    """Return every problem of a config of fit that can be found without its data."""
    if strange := of_another_tool(config):
        return [strange]
    empty = [f"{name}: it has no keys; give it some, or leave it out" for name in ROOTS if config.get(name, "") is None]
    found = empty + find_problems(config, ROOTS, ("seed_everything", "run", "ckpt_path", "weights_only"))
    if isinstance(config.get("trainer"), dict):
        found += option_problems(config["trainer"]) + refused_by_name(config["trainer"].get("callbacks"))
        found += leaving_places(config["trainer"])
    if type(seed := config.get("seed_everything")) is int and not 0 <= seed < 2**32:
        found.append(f"seed_everything: {seed} must be between 0 and {2**32 - 1:,}")
    return found + lacking_parts(config)


def _name_of(config: Path) -> str:
    """Return the name of a run: its config's name, or, for a config.yaml in a run's folder, that run's name."""
    return config.resolve().parent.name if config.name == CONFIG_FILE else config.stem
