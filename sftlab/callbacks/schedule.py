"""Schedules: callbacks that define the stages of training; a conductor carries them out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from sftlab.bounds import within
from sftlab.callbacks.adaptation import ADAPTATION, Observer, decide, write_decisions
from sftlab.callbacks.base_loss import measure_base
from sftlab.callbacks.conductor import Conductor, StopEarly
from sftlab.callbacks.context import RunContext, data_of, module_of
from sftlab.callbacks.micro_batches import choose_micro_batches
from sftlab.config import build_chosen
from sftlab.data.ability import PlannedData
from sftlab.data.plan_cache import planned
from sftlab.model.limits import limit_problems
from sftlab.model.module import SFTModule
from sftlab.model.unadapted import unadapted
from sftlab.plan.adapt import Adaptation
from sftlab.plan.curriculum import BY_LOSS, Curriculum, check_curriculum
from sftlab.plan.plan import Plan
from sftlab.plan.policy import MixturePolicy, checked_unit
from sftlab.plan.pool import Unit
from sftlab.plan.rate import LRSchedule
from sftlab.plan.stage import Stage
from sftlab.screen import show


class StageSchedule(Callback):
    """A list of stages over the abilities of the data; subclasses define which.

    In ``setup`` it compiles the plan and hands it to a ``Conductor``, which feeds the examples and, at each boundary,
    calls ``on_stage_end`` of all callbacks, then starts the next stage's optimizer state and learning rate.

    Args:
        epochs: Budget of each stage in passes over its mixture (3 if no budget is given).
        steps: Budget of each stage in optimizer steps.
        supervised_tokens: Budget of each stage in supervised tokens.
        fresh_optimizer: Whether stages start with empty optimizer state, as separate runs would.
        per_stage: Changes by stage name: {general: {epochs: 1, learning_rate: 1.0e-5, lr_schedule: Linear}}.
        val_every_n_steps: Also validate inside stages, every n optimizer steps; stage ends are always validated.
        stop_early: What Lightning's EarlyStopping ends: the ``stage``, with export and scores, or the ``run``.
        curriculum: Order of each pass over a stage's mixture: shuffled, short_first, long_first, easy_first, hard_first
            (by the loss of the base), blocked (one ability after another) or interleaved.
        loss_weights: Relative weight of each ability's supervised tokens in the loss; 1 by default.
        keep_best: An ability. Each stage ends with the weights that had its lowest held-out loss among the validations
            inside the stage, and reports what that costs the other abilities. Needs ``val_every_n_steps``.
        average_last_n_steps: Each stage ends with the mean of its weights after each of its last n steps (all of a
            shorter stage). The held-out loss at its end is still that of the last step.

    Raises:
        ValueError: An option is out of bounds, or two of them contradict one another.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        supervised_tokens: int | None = None,
        fresh_optimizer: bool = True,
        per_stage: dict[str, dict[str, Any]] | None = None,
        val_every_n_steps: int | None = None,
        stop_early: StopEarly = "stage",
        curriculum: Curriculum = "shuffled",
        loss_weights: dict[str, float] | None = None,
        keep_best: str | None = None,
        average_last_n_steps: int | None = None,
    ) -> None:
        check_curriculum("schedule.", curriculum)
        if val_every_n_steps is not None:
            within("schedule.val_every_n_steps", val_every_n_steps, 1, is_whole=True)
        if stop_early not in get_args(StopEarly):
            raise ValueError(f"schedule.stop_early: {stop_early!r} is not one of {', '.join(get_args(StopEarly))}")
        if average_last_n_steps is not None:
            within("schedule.average_last_n_steps", average_last_n_steps, 1, is_whole=True)
            if keep_best is not None:
                raise ValueError("schedule: keep_best and average_last_n_steps both say how a stage ends; give one")
        self.epochs = 3.0 if (epochs, steps, supervised_tokens) == (None, None, None) else epochs
        self.steps, self.supervised_tokens = steps, supervised_tokens
        self.fresh_optimizer = fresh_optimizer
        self.per_stage = {name: _with_objects(name, changes) for name, changes in (per_stage or {}).items()}
        self.val_every_n_steps, self.stop_early = val_every_n_steps, stop_early
        self.curriculum: Curriculum = curriculum
        self.loss_weights, self.keep_best, self.average_last_n_steps = loss_weights, keep_best, average_last_n_steps
        self._conductor: Conductor | None = None  # of the current call of fit
        self._adaptation: Adaptation | None = None  # of its adaptive stage
        self._observer: Observer | None = None

    @abstractmethod
    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """Return the stages in the order of training, for data with these abilities."""

    def stage(self, name: str, fractions: Mapping[str, float]) -> Stage:
        """Create a stage with the options of this schedule.

        Args:
            name: Name of the stage.
            fractions: The abilities to train, each with the fraction of its selected examples.
        """
        budget = {"epochs": self.epochs, "steps": self.steps, "supervised_tokens": self.supervised_tokens}
        weights = {ability: weight for ability, weight in (self.loss_weights or {}).items() if ability in fractions}
        options: dict[str, Any] = {**budget, "fresh_optimizer": self.fresh_optimizer, "curriculum": self.curriculum}
        return Stage(name, dict(fractions), loss_weights=weights or None, **options)

    def final_stages(self, abilities: Sequence[str]) -> list[Stage]:
        """Return the stages with ``per_stage`` applied.

        Raises:
            ValueError: ``per_stage`` names an unknown stage or setting, or ``loss_weights`` an unknown ability.
        """
        stages = self.stages(abilities)
        names = [stage.name for stage in stages]
        unknown = sorted(set(self.per_stage) - set(names))
        if unknown:
            raise ValueError(f"schedule.per_stage: no stage named {unknown}; the stages are {names}")
        trained = {ability for stage in stages for ability in stage.fractions}
        if unknown := sorted(set(self.loss_weights or {}) - trained):
            raise ValueError(f"schedule.loss_weights: no stage trains {unknown}; they train {sorted(trained)}")
        return [_changed(stage, self.per_stage.get(stage.name, {})) for stage in stages]

    def compile(self, data: PlannedData, module: SFTModule) -> Plan:
        """Load the data and compile the plan. Needs neither model weights nor a Trainer.

        Raises:
            ValueError: The data does not fit the model, or the stages do not fit the data.
        """
        if not all(ability.is_declared for ability in data.abilities.values()):
            data.load(module.tokenizer)
            config = module.load_config()
            data.limit_notes = [*limit_problems(config, module.tokenizer, data), *unadapted(config, module.adapter)]
        stages = self.final_stages(list(data.abilities))
        module.check(stages)
        if any(stage.curriculum in BY_LOSS for stage in stages):
            measure_base(data, module)
        plan, self._adaptation = planned(data, stages)
        for part in plan.stages:
            part.stage.num_warmup_steps(part.num_steps, module.warmup_ratio, module.warmup_steps)
        return plan

    def extend(self, context: RunContext) -> None:
        """Append the next segment to an open plan, or close the plan. Called only for plans left open by ``compile``.

        For an adaptive stage, ``compile`` compiles the first segment and leaves the plan open. This is called when the
        last compiled step is done, after validation and the stage's end if they are due.
        """
        if self._adaptation is None:
            raise NotImplementedError(f"{type(self).__name__} leaves its plan open, but has no extend()")
        decide(context, self._adaptation, self._conducting.segment_states)

    @property
    def context(self) -> RunContext | None:
        """The run that this schedule conducts; None before its plan is compiled."""
        return self._conductor.context if self._conductor is not None else None

    # Hooks of Lightning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the plan and pass it to data, model and conductor."""
        if stage == "fit":
            module = module_of(pl_module)
            plan = self.compile(data_of(trainer), module)
            how = (self.val_every_n_steps, self.stop_early, self.keep_best, self.average_last_n_steps)
            _tell_lacking(trainer)
            self._conductor = Conductor(trainer, module, plan, self.extend, *how)
            choose_micro_batches(self._conductor.context)
            self._observer = Observer(self._conductor.context, self._adaptation) if self._adaptation else None
            # After all other callbacks but before checkpoints: their requests of a step are seen, their state is saved.
            all_callbacks = cast(Any, trainer).callbacks
            savers = [callback for callback in all_callbacks if isinstance(callback, Checkpoint)]
            others = [callback for callback in all_callbacks if callback is not self and callback not in savers]
            cast(Any, trainer).callbacks = [*others, self, *savers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning's loops."""
        if self._adaptation is not None:
            write_decisions(self._conducting.context, self._adaptation)
        self._conducting.on_train_start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start a stage at its first step."""
        self._conducting.on_train_batch_start(batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check the gradients."""
        self._conducting.on_before_optimizer_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate and end a stage if due."""
        if self._observer is not None:
            self._observer.on_train_batch_end(outputs["nll_A"], batch_idx)
        self._conducting.on_train_batch_end(outputs["nll_A"], batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a stage after its validation."""
        if self._conductor is not None:  # trainer.validate() has no plan
            if self._observer is not None:
                self._observer.on_validation_end()
            self._conductor.on_validation_end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if this call ends before the plan does."""
        self._conducting.on_train_end()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run must check and restore."""
        self._conducting.on_save_checkpoint(checkpoint)
        if self._adaptation is not None:
            checkpoint[ADAPTATION] = self._adaptation.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a different run; replay its decisions."""
        if self._adaptation is not None and checkpoint["global_step"] > self._adaptation.first_step:
            self._conducting.resume_guard.check(checkpoint)
            self._adaptation.load_state_dict(checkpoint[ADAPTATION])
        self._conducting.on_load_checkpoint(checkpoint)

    @property
    def _conducting(self) -> Conductor:
        assert self._conductor is not None, "setup compiles the plan"
        return self._conductor


_BESIDE = {
    "Metrics": "losses by ability, speed",
    "Ledger": "what was trained",
    "ScoreAbilities": "scores after each stage",
    "ScreenProgress": "the plan on the screen",
}


def _tell_lacking(trainer: Trainer) -> None:
    """Print which of the callbacks that ``sftlab fit`` adds are missing in a Trainer built by hand."""
    have = {cls.__name__ for callback in cast(Any, trainer).callbacks for cls in type(callback).__mro__}
    lacking = [f"{name} ({words})" for name, words in _BESIDE.items() if name not in have]
    if lacking and trainer.is_global_zero:
        show(f"This Trainer has no {', '.join(lacking)}: add them from sftlab, or call sftlab.fit, which has all.")


_OBJECTS: dict[str, type] = {"policy": MixturePolicy, "lr_schedule": LRSchedule}


def _with_objects(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of a stage with objects instead of class names."""
    where = f"schedule.per_stage.{name}"
    if not isinstance(changes, Mapping):
        raise ValueError(f"{where}: give keys and values, not {changes!r}")
    return {
        key: build_chosen(f"{where}.{key}", _OBJECTS[key], value) if key in _OBJECTS and value is not None else value
        for key, value in changes.items()
    }


def _changed(stage: Stage, changes: Mapping[str, Any]) -> Stage:
    known = {field.name for field in fields(Stage)} - {"name", "fractions"}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"schedule.per_stage.{stage.name}: {unknown} is not one of {sorted(known)}")
    if {"epochs", "steps", "supervised_tokens"} & set(changes):
        return replace(stage, **{"epochs": None, "steps": None, "supervised_tokens": None, **changes})
    return replace(stage, **changes)


class MultiTask(StageSchedule):
    """One stage over all abilities at once (the paper, section 3.5, strategy 1)."""

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """One stage with all abilities in full."""
        return [self.stage("all", dict.fromkeys(abilities, 1.0))]


class Sequential(StageSchedule):
    """One ability after another (strategy 2).

    Args:
        order: Abilities in the order of training; by default code, math, general, then all others.
        options: The options of StageSchedule.
    """

    def __init__(self, order: list[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.order = order

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """One stage for each ability."""
        usual = [name for name in ("code", "math", "general") if name in abilities]
        order = self.order or usual + [name for name in abilities if name not in usual]
        return [self.stage(name, {name: 1.0}) for name in order]


class DMT(StageSchedule):
    """Dual-stage mixed fine-tuning (strategy 4).

    Stage 1 trains the specialised abilities; stage 2 trains the general ones and replays a fraction k of the
    specialised ones.

    Args:
        specialised: Abilities of stage 1.
        general: Abilities of stage 2.
        k: Replay fraction, 0 <= k <= 1.
        counted_in: What k counts: examples, tokens or supervised_tokens of an ability.
        replay: Abilities that stage 2 replays; by default those of stage 1. They need not be trained by another stage:
            text like that of the base's pretraining, for example.
        options: The options of StageSchedule.
    """

    def __init__(
        self,
        specialised: list[str] = ["code", "math"],  # noqa: B006 - never changed
        general: list[str] = ["general"],  # noqa: B006
        k: float = 1 / 256,
        counted_in: Unit = "examples",
        replay: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        checked_unit(counted_in)
        if not 0 <= k <= 1:
            raise ValueError(f"schedule.k: {k} does not lie between 0 and 1")
        if set(specialised) & set(general):
            raise ValueError(f"schedule: {sorted(set(specialised) & set(general))} are both specialised and general")
        if set(replay or []) & set(general):
            raise ValueError(f"schedule.replay: {sorted(set(replay or []) & set(general))} are general already")
        self.specialised, self.general, self.k = specialised, general, k
        self.counted_in, self.replay = counted_in, replay

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """A specialised stage, then a general one with replay; with k = 0 it names the general abilities only."""
        replayed = self.specialised if self.replay is None else self.replay
        replay = dict.fromkeys(replayed, self.k) if self.k else {}
        general = self.stage("general", {**dict.fromkeys(self.general, 1.0), **replay})
        return [
            self.stage("specialised", dict.fromkeys(self.specialised, 1.0)),
            replace(general, counted_in=self.counted_in) if replay else general,
        ]


class MixedSequential(DMT):
    """The specialised abilities mixed, then the general ones (strategy 3): DMT with k = 0."""

    def __init__(
        self,
        specialised: list[str] = ["code", "math"],  # noqa: B006 - never changed
        general: list[str] = ["general"],  # noqa: B006
        **options: Any,
    ) -> None:
        super().__init__(specialised, general, k=0.0, counted_in="examples", replay=None, **options)


class Stages(StageSchedule):
    """Stages given one by one.

    Args:
        list_of_stages: The stages in the order of training.
        options: The options of StageSchedule.
    """

    def __init__(self, list_of_stages: list[Stage], **options: Any) -> None:
        super().__init__(**options)
        self.list_of_stages = list_of_stages

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """The given stages."""
        return self.list_of_stages
