"""Schedules: callbacks that compile a plan, feed it, and carry out the switch at each stage boundary."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sftlab.data.ability import PlannedData
from sftlab.model.export import ARCHITECTURE, export_live, write_architecture
from sftlab.model.module import SFTModule
from sftlab.model.optim import learning_rate_at
from sftlab.plan.plan import Plan, StagePlan, compile_plan
from sftlab.plan.stage import Stage
from sftlab.run.folder import checkpoint_path
from sftlab.run.identity import reused_stages, run_identity, stage_keys

_STATE = "sftlab"  # key of our part of a checkpoint
_NEVER = 2**62  # a micro-batch that is never reached


class StageSchedule(Callback):
    """A list of stages over the abilities that the data has; subclasses say which.

    In ``setup`` it compiles the plan and hands it to data and module; at each boundary it starts the next stage's
    optimizer state and learning rate, after ``on_stage_end`` of every callback that has one.

    Args:
        epochs: Budget of each stage: passes over its mixture (3 when no budget is given).
        steps: Budget of each stage in optimizer steps.
        supervised_tokens: Budget of each stage in supervised tokens.
        fresh_optimizer: Stages start with empty optimizer state, as separate fine-tuning runs do.
        per_stage: Changes by stage name: {general: {epochs: 1, learning_rate: 1.0e-5}}.
        val_every_n_steps: Validate inside stages too; stage ends are always validated.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        supervised_tokens: int | None = None,
        fresh_optimizer: bool = True,
        per_stage: dict[str, dict[str, Any]] | None = None,
        val_every_n_steps: int | None = None,
    ) -> None:
        self.epochs = 3.0 if (epochs, steps, supervised_tokens) == (None, None, None) else epochs
        self.steps, self.supervised_tokens = steps, supervised_tokens
        self.fresh_optimizer, self.per_stage = fresh_optimizer, per_stage or {}
        self.val_every_n_steps = val_every_n_steps
        self.plan: Plan | None = None
        self._identity: dict[str, str] = {}
        self._stage_keys: list[str] = []
        self._rng_states: list[torch.Tensor] | None = None
        self._validated = 0  # the last step that was validated
        self._stage_began = 0.0

    @abstractmethod
    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """The stages, in the order of training, for data that has these abilities."""

    def stage(self, name: str, fractions: Mapping[str, float]) -> Stage:
        """A stage with this schedule's budget."""
        budget = {"epochs": self.epochs, "steps": self.steps, "supervised_tokens": self.supervised_tokens}
        return Stage(name, dict(fractions), fresh_optimizer=self.fresh_optimizer, **budget)  # type: ignore[arg-type]

    def final_stages(self, abilities: Sequence[str]) -> list[Stage]:
        """The stages with ``per_stage`` applied.

        Raises:
            ValueError: ``per_stage`` names a stage or a setting that there is not.
        """
        stages = self.stages(abilities)
        names = [stage.name for stage in stages]
        unknown = sorted(set(self.per_stage) - set(names))
        if unknown:
            raise ValueError(f"schedule.per_stage: no stage named {unknown}; the stages are {names}")
        return [_changed(stage, self.per_stage.get(stage.name, {})) for stage in stages]

    def compile(self, data: PlannedData, module: SFTModule) -> Plan:
        """Load the data and compile the plan; needs no model weights and no trainer."""
        if not all(ability.is_declared for ability in data.abilities.values()):
            data.load(module.tokenizer)
        stages = self.final_stages(list(data.abilities))
        return compile_plan(data.pools(), stages, data.policy, data.batch, data.max_length, data.seed)

    # What Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the plan before the first step and tell everyone."""
        if stage != "fit":
            return
        data, module = _data_of(trainer), cast(SFTModule, pl_module)
        plan = self.compile(data, module)
        if plan.declared:
            raise ValueError("data: an ability only declares a count (path: null); `plan` can show it, not `fit` it")
        self.plan = plan
        data.follow(plan)
        module.follow(plan)
        module.run_folder = Path(trainer.log_dir or trainer.default_root_dir)
        module.val_abilities = data.val_abilities()
        self._identity = run_identity(data, module, self.final_stages(list(data.abilities)), plan)
        self._stage_keys = stage_keys(data, module, plan)
        # The Trainer was built before the plan existed. A smaller max_steps of the user's cuts this call short; the
        # plan stays whole, so that a resumed run goes on to its end.
        loop = trainer.fit_loop.epoch_loop
        loop.max_steps = plan.num_steps if loop.max_steps < 0 else min(loop.max_steps, plan.num_steps)
        trainer.fit_loop.max_epochs = -1
        # The loaders divide the plan among ranks themselves; Lightning's sampler would shuffle it.
        trainer._accelerator_connector.use_distributed_sampler = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the random state of a resumed run; with the loaders known, take over when validation is due."""
        self._stage_began = time.perf_counter()
        if self._rng_states is not None and len(self._rng_states) == trainer.world_size:
            torch.set_rng_state(self._rng_states[trainer.global_rank])
        # A checkpoint holds the rate of the step after it, which another run may have planned differently.
        module = cast(SFTModule, pl_module)
        rate = learning_rate_at(self._plan, trainer.global_step, module.learning_rate, module.warmup_ratio)
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        if trainer.is_global_zero:
            write_architecture(module.run_folder / ARCHITECTURE, module, _data_of(trainer))
        trainer.check_val_every_n_epoch = None
        trainer.val_check_batch = _NEVER
        if trainer.global_step and self._validated != trainer.global_step and self._validation_due(trainer):
            _validate(trainer)  # the run was killed between the checkpoint and this validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first micro-batch of a stage: empty the optimizer state if the stage asks for it."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        for stage in self._plan.stages:
            if trainer.global_step == stage.first_step:
                if stage.stage.fresh_optimizer:
                    for optimizer in trainer.optimizers:
                        optimizer.state.clear()
                self._stage_began = time.perf_counter()
                _call(trainer, "on_stage_start", stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step: ask for validation where it is due, end a stage without it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            trainer.val_check_batch = _NEVER
            return
        ended, due = self._ended_stage(trainer.global_step), self._validation_due(trainer)
        trainer.val_check_batch = batch_idx + 1 if due else _NEVER
        if ended is not None and not due:
            self._end_stage(trainer, ended)

    def _validation_due(self, trainer: Trainer) -> bool:
        every, step = self.val_every_n_steps, trainer.global_step
        if not _data_of(trainer).val_abilities():
            return False
        return self._ended_stage(step) is not None or bool(every and step % every == 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a stage after its validation."""
        if trainer.state.fn == "fit":
            self._validated = trainer.global_step
        ended = self._ended_stage(trainer.global_step)
        if ended is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_stage(trainer, ended)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what a call that was cut short has trained."""
        step = trainer.global_step
        if step and self._ended_stage(step) is None:
            trainer.save_checkpoint(checkpoint_path(run_folder(trainer), step), weights_only=False)

    def _end_stage(self, trainer: Trainer, ended: StagePlan) -> None:
        """Export, let every callback look, then save: a run killed on the way does the stage's end again."""
        folder = stage_folder(run_folder(trainer), self._plan, ended)
        module = cast(SFTModule, trainer.lightning_module)
        export_live(trainer, module, folder, self._plan, ended.end_step)
        _call(trainer, "on_stage_end", ended)
        for logger in trainer.loggers:  # scores included; of a resumed stage, the time since then
            logger.log_metrics({"stage/seconds": time.perf_counter() - self._stage_began}, step=ended.end_step)
        path = checkpoint_path(run_folder(trainer), ended.end_step, ended.stage.name)
        trainer.save_checkpoint(path, weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what a resume must check and restore."""
        state = torch.get_rng_state()
        states: list[Any] = [state]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        mine = {"identity": self._identity, "stage_keys": self._stage_keys}
        checkpoint[_STATE] = {**mine, "rng": states, "validated": self._validated}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume what is not the same run; count batches in this run's micro-batches.

        Raises:
            ValueError: Data, template, tokenizer, schedule, seed, batch or model differ: says which.
        """
        saved = checkpoint.get(_STATE)
        if saved is None:
            raise ValueError("ckpt_path: not a checkpoint of a staged run (start from its exported folder instead)")
        was = saved["identity"]
        changed = sorted(key for key in was.keys() | self._identity.keys() if was.get(key) != self._identity.get(key))
        if changed and not self._took_over(trainer, saved["stage_keys"], checkpoint["global_step"]):
            raise ValueError(
                f"ckpt_path: this run differs from the checkpoint's in: {', '.join(changed)}. Resume with the config "
                "and data that the run began with, or start a new run without --ckpt_path"
            )
        self._rng_states, self._validated = saved["rng"], saved["validated"]
        _count_in_micro_batches(checkpoint, trainer.accumulate_grad_batches)

    def _took_over(self, trainer: Trainer, saved_keys: list[str], step: int) -> bool:
        """Whether the checkpoint ends a stage that this run shares with another and was given."""
        ended = self._ended_stage(step)
        number = self._plan.stages.index(ended) if ended is not None else -1
        if not 0 <= number < len(saved_keys) or saved_keys[number] != self._stage_keys[number]:
            return False
        return saved_keys[number] in [stage["key"] for stage in reused_stages(run_folder(trainer))]

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None, "setup compiles the plan"
        return self.plan

    def _ended_stage(self, global_step: int) -> StagePlan | None:
        return next((stage for stage in self._plan.stages if stage.end_step == global_step), None)


def _count_in_micro_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Restate the loop's progress for this run's micro-batches: the optimizer step is the truth.

    The numbers are those of a save inside ``on_train_batch_end``, where the last batch does not count as completed.
    """
    step = checkpoint["global_step"]
    loop = checkpoint["loops"]["fit_loop"]
    loop["state_dict"]["combined_loader"] = [{"step": step}]
    loop["epoch_loop.batch_progress"]["is_last_batch"] = False  # a run that took over a stage has more of them
    for counts in (loop["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
        counts.update(dict.fromkeys(counts, step * accumulate))
        counts["completed"] -= 1


def _validate(trainer: Trainer) -> None:
    """Run the validation inside fit, as the training loop itself does."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


def _changed(stage: Stage, changes: Mapping[str, Any]) -> Stage:
    known = {field.name for field in fields(Stage)} - {"name", "fractions"}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"schedule.per_stage.{stage.name}: {unknown} is not one of {sorted(known)}")
    if {"epochs", "steps", "supervised_tokens"} & set(changes):
        stage = replace(stage, **{"epochs": None, "steps": None, "supervised_tokens": None, **changes})
        return stage
    return replace(stage, **changes)


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run: its logger's, where checkpoints, stages and results go too."""
    return cast(SFTModule, trainer.lightning_module).run_folder


def is_due_inside(trainer: Trainer, batch_idx: int, every_n_steps: int | None) -> bool:
    """Whether this micro-batch ended every n-th optimizer step, where that is inside a stage and not at its end."""
    step = trainer.global_step
    if not every_n_steps or step % every_n_steps or (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    plan = _data_of(trainer).plan
    return plan is not None and step not in plan.boundaries


def stage_folder(folder: Path, plan: Plan, stage: StagePlan) -> Path:
    """Where a stage's result is exported: stages/0-specialised."""
    return folder / "stages" / f"{plan.stages.index(stage)}-{stage.stage.name}"


def _data_of(trainer: Trainer) -> PlannedData:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PlannedData):
        raise ValueError("fit needs datamodule=MixtureData(...) or a single ability such as MathData(...)")
    return data


def _call(trainer: Trainer, hook: str, stage: StagePlan) -> None:
    for callback in cast(Any, trainer).callbacks:
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, trainer.lightning_module, stage)


class MultiTask(StageSchedule):
    """One stage over all abilities at once (the paper, section 3.5, strategy 1)."""

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """All abilities, whole."""
        return [self.stage("all", dict.fromkeys(abilities, 1.0))]


class Sequential(StageSchedule):
    """One ability after another (strategy 2).

    Args:
        order: Abilities in the order of training; the paper's by default, those that the data has.
        options: As of StageSchedule.
    """

    def __init__(self, order: list[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.order = order

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """One stage per ability."""
        usual = [name for name in ("code", "math", "general") if name in abilities]
        order = self.order or usual + [name for name in abilities if name not in usual]
        return [self.stage(name, {name: 1.0}) for name in order]


class DMT(StageSchedule):
    """Dual-stage mixed fine-tuning (strategy 4).

    Stage 1 trains the specialised abilities; stage 2 the general ones with a fraction k of each specialised ability.

    Args:
        specialised: Abilities of stage 1.
        general: Abilities of stage 2.
        k: Replay fraction, 0 <= k <= 1.
        options: As of StageSchedule.
    """

    def __init__(
        self,
        specialised: list[str] = ["code", "math"],  # noqa: B006 - never changed
        general: list[str] = ["general"],  # noqa: B006
        k: float = 1 / 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= k <= 1:
            raise ValueError(f"schedule.k: {k} does not lie between 0 and 1")
        if set(specialised) & set(general):
            raise ValueError(f"schedule: {sorted(set(specialised) & set(general))} are both specialised and general")
        self.specialised, self.general, self.k = specialised, general, k

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """Specialised, then general with replay; without any replay the second stage names general abilities only."""
        replay = dict.fromkeys(self.specialised, self.k) if self.k else {}
        return [
            self.stage("specialised", dict.fromkeys(self.specialised, 1.0)),
            self.stage("general", {**dict.fromkeys(self.general, 1.0), **replay}),
        ]


class MixedSequential(DMT):
    """Specialised abilities mixed, then the general ones (strategy 3): DMT with k = 0."""

    def __init__(
        self,
        specialised: list[str] = ["code", "math"],  # noqa: B006 - never changed
        general: list[str] = ["general"],  # noqa: B006
        **options: Any,
    ) -> None:
        super().__init__(specialised, general, k=0.0, **options)


class Stages(StageSchedule):
    """Stages written out one by one.

    Args:
        list_of_stages: Each with its abilities, budget, policy and learning rate.
        options: As of StageSchedule.
    """

    def __init__(self, list_of_stages: list[Stage], **options: Any) -> None:
        super().__init__(**options)
        self.list_of_stages = list_of_stages

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """As given."""
        return self.list_of_stages
