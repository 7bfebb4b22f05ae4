"""The conductor: carries a plan out inside Lightning's loops, whose internals nothing else touches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer

from sftlab import __version__
from sftlab.callbacks.adaptation import check_held_out, check_returns, decides_by_validation
from sftlab.callbacks.context import RunContext, data_of, folder_of
from sftlab.callbacks.finite import ScaledSteps, gradient_norm, stop_at_gradient, stop_at_weights
from sftlab.callbacks.keep_best import BestKeeper
from sftlab.callbacks.micro_batches import count_in_micro_batches
from sftlab.callbacks.monitors import EarlyStoppers, check_callbacks
from sftlab.callbacks.optimizers import StageOptimizers
from sftlab.callbacks.segment_states import SegmentStates
from sftlab.callbacks.signals import Signals
from sftlab.callbacks.tail_average import TailAverage
from sftlab.callbacks.trainer_options import refuse_options
from sftlab.files import discard, publish_folder
from sftlab.model.checkpoint import write_whole
from sftlab.model.contents import STATE, is_whole
from sftlab.model.export import ARCHITECTURE, write_architecture
from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan
from sftlab.run.folder import checkpoint_path
from sftlab.run.identity import differ_in_own_callbacks, differences, reused_stages, run_identity, stage_keys
from sftlab.run.settings import OWN_CALLBACKS, Settings
from sftlab.screen import show

_NEVER = 2**62  # an epoch and a micro-batch that are never reached
StopEarly = Literal["stage", "run"]


class Conductor:
    """Carries out one call of ``fit``: feeds the data, starts and ends stages, adds to checkpoints.

    Args:
        trainer: Lightning's Trainer.
        module: The model.
        plan: The plan.
        extend: Appends the next segment to an open plan, or closes it; called when the last compiled step is done.
        val_every_n_steps: Also validate inside stages; stage ends are always validated.
        stop_early: What EarlyStopping ends: the stage, or the run.
        keep_best: The ability by whose held-out loss the final weights of a stage are chosen.
        average_last_n_steps: A stage ends with the mean of its weights after each of its last n steps.

    Attributes:
        context: The run.
        segment_states: The states that an adaptive stage may return to.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: SFTModule,
        plan: Plan,
        extend: Callable[[RunContext], None],
        val_every_n_steps: int | None,
        stop_early: StopEarly = "stage",
        keep_best: str | None = None,
        average_last_n_steps: int | None = None,
    ) -> None:
        data = data_of(trainer)
        if plan.declared:
            raise ValueError("data: an ability only declares a count (path: null); `plan` can show it, not `fit` it")
        refuse_options(trainer)
        self.context = RunContext(trainer, folder_of(trainer), data, module, plan)
        self._extend, self._val_every_n_steps, self._stop_early = extend, val_every_n_steps, stop_early
        data.follow(plan)
        module.follow(plan, data.val_abilities())
        check_held_out(plan, data, trainer)
        check_returns(plan, keep_best, average_last_n_steps, trainer)
        check_callbacks(self.context, bool(val_every_n_steps) or decides_by_validation(plan))
        self._settings = Settings.of_trainer(trainer)
        self._identity = run_identity(data, module, plan, self._settings)
        self._keep_keys()
        self._optimizers = StageOptimizers(trainer, module, plan)
        self._stoppers = EarlyStoppers(cast(Any, trainer).callbacks)
        self._keeper = BestKeeper(self.context, keep_best, bool(val_every_n_steps))
        self._average = TailAverage(self.context, average_last_n_steps)
        self.segment_states = SegmentStates(self.context, self._optimizers.rest)
        self._ended_early: list[int] = []  # the steps at which stages ended before their plan's end
        self._ended = 0  # the step at which a stage's end was done
        self._is_stop_asked = False
        self._rng_states: list[torch.Tensor] | None = None
        self._validated = 0  # the last step that was validated
        self._stage_began = 0.0
        self._norm = 0.0  # of the last step's gradients
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._scaled = ScaledSteps() if has_scaler else None
        self._take_over_loops(trainer)

    def _take_over_loops(self, trainer: Trainer) -> None:
        """Tell Lightning how long training is: the Trainer was built before the plan existed.

        A smaller max_steps of the user's cuts this call short; the plan stays whole, so that a resumed run goes on to
        its end.
        """
        write_whole(trainer)
        loop = trainer.fit_loop.epoch_loop
        self._max_steps = loop.max_steps if loop.max_steps >= 0 else _NEVER
        loop.max_steps = min(self._max_steps, self.context.plan.num_steps)
        trainer.fit_loop.max_epochs = -1
        # The loaders divide the plan among ranks themselves; Lightning's sampler would shuffle it.
        trainer._accelerator_connector.use_distributed_sampler = False

    # What Lightning calls, by way of the schedule

    def on_train_start(self) -> None:
        """Continue the random state of a resumed run; with the loaders known, take over when validation is due."""
        context, trainer = self.context, self.context.trainer
        self._stage_began = time.perf_counter()
        self._signals = Signals(trainer, context.folder)
        if self._rng_states is not None and len(self._rng_states) == trainer.world_size:
            torch.set_rng_state(self._rng_states[trainer.global_rank])
        self._set_rate()  # a checkpoint holds that of the step after it, which another run may have planned otherwise
        if trainer.is_global_zero:
            write_architecture(context.folder / ARCHITECTURE, context.module, context.data)
        trainer.check_val_every_n_epoch, trainer.val_check_batch = _NEVER, _NEVER
        self._stoppers.look_after_validation()
        if context.step and self._ended == context.step:
            self._stoppers.begin_anew()
            self.segment_states.stage_ended()
        elif context.step and self._validated != context.step and self._is_validation_due():
            self._validate()  # the run was killed between the checkpoint and this validation
        elif context.step:
            self._finish_step()
        trainer.fit_loop.epoch_loop.max_steps = min(self._max_steps, context.plan.num_steps)

    def on_train_batch_start(self, batch_idx: int) -> None:
        """At the first micro-batch of a stage: its optimizer, with empty state if the stage asks for it."""
        trainer, step = self.context.trainer, self.context.step
        self._signals.saved = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stage = self.context.plan.stage_at(step)
        if stage.first_step == step:
            before = self.context.plan.stage_at(step - 1) if step else None
            self._optimizers.begin(before, stage)
            self._stage_began = time.perf_counter()
            self._call("on_stage_start", stage)
        self._optimizers.work()

    def on_before_optimizer_step(self) -> None:
        """Stop at gradients that are not finite; give their norm, before any clipping, to whoever logs it."""
        trainer, module = self.context.trainer, self.context.module
        if module.live_adapter is not None:
            module.live_adapter.drop_gradients(self.context.plan.stage_at(self.context.step))
        norm = gradient_norm(module)
        self._norm = norm
        if self._scaled is None:
            stop_at_gradient(self.context, norm)
        trainer.callback_metrics["train/gradient_norm"] = torch.tensor(norm)

    def on_train_batch_end(self, nll_A: torch.Tensor, batch_idx: int) -> None:
        """After the last micro-batch of a step: ask for validation where it is due, finish the step without it."""
        trainer = self.context.trainer
        trainer.check_val_every_n_epoch, trainer.val_check_batch = _NEVER, _NEVER
        if self._scaled is not None:
            self._scaled.add(nll_A)
            if self.context.ends_step(batch_idx):
                self._scaled.look(self.context, self._norm)
        if not self.context.ends_step(batch_idx):  # a run that is asked to stop does so when its step is whole
            self._is_stop_asked |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._is_stop_asked
        is_end, is_due = self.context.plan.stage_ending_at(self.context.step) is not None, self._is_validation_due()
        if is_end or is_due:
            self._optimizers.rest()
        self._average.observe(self._optimizers.rest)
        if is_end:
            self._signals.saved = self._save_reached()
        self._signals.look(self._save_reached)
        if is_due:
            trainer.check_val_every_n_epoch, trainer.val_check_batch = None, batch_idx + 1
        else:
            self._finish_step()

    def on_validation_end(self) -> None:
        """Finish the step that was validated."""
        trainer = self.context.trainer
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = trainer.global_step
            self._keeper.observe()
            if trainer.should_stop and (reason := self._stoppers.reason()) is not None:
                self._end_early(reason)
            self._finish_step()

    def on_train_end(self) -> None:
        """Keep what a call that was cut short has trained."""
        context = self.context
        if context.step and context.plan.stage_ending_at(context.step) is None:
            context.trainer.save_checkpoint(checkpoint_path(context.folder, context.step), weights_only=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resume must check and restore."""
        state, world = torch.get_rng_state(), self.context.trainer.world_size
        states: list[Any] = [state]
        if world > 1:
            states = [None] * world
            torch.distributed.all_gather_object(states, state)
        checkpoint[STATE] = {
            **{"version": __version__, "identity": self._identity, "stage_keys": self._stage_keys},
            **{"ended_early": list(self._ended_early), "kept": self._keeper.state(), "averaged": self._average.state()},
            **{"rng": states, "validated": self._validated, "ended": self._ended},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume what is not the same run; count batches in this run's micro-batches.

        Raises:
            ValueError: Data, template, tokenizer, schedule, seed, batch or model differ: says which.
        """
        saved = self.check(checkpoint)
        self._rng_states, self._validated, self._ended = saved["rng"], saved["validated"], saved.get("ended", 0)
        self._keeper.load(saved.get("kept", {"best": None, "saved": []}))
        self._average.load(saved.get("averaged", {"count": 0, "last": 0}))
        for step in saved.get("ended_early", []):
            self._cut(step)
        ended = self.context.plan.stage_ending_at(checkpoint["global_step"])
        if ended is not None and Path(str(self.context.trainer.ckpt_path)).name == self._ended_path(ended).name:
            self._validated = self._ended = ended.end_step  # its name says that it was exported and scored
        loop = self.context.trainer.fit_loop.epoch_loop
        if ended is not None and self._ended != ended.end_step and loop.max_steps == ended.end_step:
            loop.max_steps += 1  # else Lightning sees nothing to do, and a stage that was killed at its end has none
        count_in_micro_batches(checkpoint, self.context.trainer.accumulate_grad_batches)

    def check(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint keeps for a resume of this run.

        Raises:
            ValueError: It is another run's.
        """
        saved = checkpoint.get(STATE)
        if saved is None:
            raise ValueError("ckpt_path: not a checkpoint of a staged run (start from its exported folder instead)")
        theirs = saved.get("version", "an earlier version")
        upgraded = f" (written by sftlab {theirs}, this is {__version__})" if theirs != __version__ else ""
        if lacking := sorted({"identity", "stage_keys", "rng", "validated"} - set(saved)):
            raise ValueError(
                f"ckpt_path: the checkpoint{upgraded} does not hold {', '.join(lacking)}, which going on needs: go on "
                "with the version that wrote it, or start a new run from the folder of its last stage"
            )
        changed = differences(saved["identity"], self._identity)
        if changed and differ_in_own_callbacks(saved["identity"], self._identity):
            self._go_on_with_other_callbacks(saved["identity"])
        elif changed and not self._took_over(saved["stage_keys"], checkpoint["global_step"]):
            raise ValueError(
                f"ckpt_path: this run differs from the checkpoint's{upgraded} in: {', '.join(changed)}. Resume with "
                "the config (config.yaml in the run's folder), data and version that the run began with, or start a "
                "new run without --ckpt_path"
            )
        return saved

    # What it does

    def _go_on_with_other_callbacks(self, identity: dict[str, str]) -> None:
        """Say so; the weights to come are then like those of no run that had one or the other all along."""
        before, trained = identity.get(f"trainer.{OWN_CALLBACKS}", "none"), self._settings.trained
        if self.context.trainer.is_global_zero:
            show(
                "Note: callbacks of yours, or what they may look at, have changed since the run began. If they change "
                "training, its weights are neither one run's nor the other's (changes_training = False denies it)."
            )
        both = {**trained, OWN_CALLBACKS: [trained.get(OWN_CALLBACKS), before]}
        self._settings = replace(self._settings, trained=both)
        context = self.context
        self._identity = run_identity(context.data, context.module, context.plan, self._settings)
        self._keep_keys()

    def _finish_step(self) -> None:
        """End the stage and compile the next segment where this step was the last one of them."""
        context = self.context
        ended = context.plan.stage_ending_at(context.step)
        if ended is not None:
            self._end_stage(ended)
        if context.plan.is_open and context.step == context.plan.num_compiled_steps:
            self._extend(context)
            self._plan_changed()
            if ended is None and (ended := context.plan.stage_ending_at(context.step)) is not None:
                self._end_stage(ended, is_changed=True)  # it was decided, and may have brought other weights

    def _save_reached(self) -> Path:
        """Save what was trained before validation, export and scores: these are done again where they break."""
        context = self.context
        path = checkpoint_path(context.folder, context.step)
        context.trainer.save_checkpoint(path, weights_only=False)
        return path

    def _end_stage(self, ended: StagePlan, is_changed: bool = False) -> None:
        """Export and let every callback look; then the checkpoint gets the name of the stage, which says so."""
        context, trainer = self.context, self.context.trainer
        is_changed |= self._keeper.end_stage(ended) or self._average.end_stage(ended)
        stop_at_weights(context)
        if self._scaled is not None:
            self._scaled.tell(context)
        context.export(context.stage_folder(ended))
        self._call("on_stage_end", ended)
        context.log({"stage/seconds": time.perf_counter() - self._stage_began})  # of a resumed stage, since then
        self._stoppers.begin_anew()
        self._ended = ended.end_step
        reached, path = checkpoint_path(context.folder, ended.end_step), self._ended_path(ended)
        if is_changed:
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                discard(reached)
        elif trainer.strategy.broadcast(is_whole(reached)):
            if trainer.is_global_zero and reached.is_dir():
                publish_folder(reached, path)  # a run that went back to an earlier checkpoint has one there already
            elif trainer.is_global_zero:
                reached.replace(path)
            trainer.strategy.barrier("stage checkpoint")
        elif not trainer.strategy.broadcast(is_whole(path)):
            trainer.save_checkpoint(path, weights_only=False)
        for kept in (self._keeper, self._average, self.segment_states):
            kept.stage_ended()

    def _ended_path(self, ended: StagePlan) -> Path:
        return checkpoint_path(self.context.folder, ended.end_step, ended.stage.name)

    def _end_early(self, reason: str) -> None:
        """End the stage in training, and the run where that is wanted, as EarlyStopping asks."""
        context, step = self.context, self.context.step
        context.trainer.should_stop = False
        if context.plan.stage_ending_at(step) is not None and self._stop_early == "stage":
            return
        if context.trainer.is_global_zero:
            show(f"EarlyStopping ends {self._stop_early} {context.stage.stage.name} after step {step:,} ({reason})")
        self._stoppers.begin_anew()
        self._cut(step)
        self._save_reached()

    def _cut(self, step: int) -> None:
        self._ended_early.append(step)
        self.context.plan.end_stage(step, ends_run=self._stop_early == "run")
        self._plan_changed()

    def _plan_changed(self) -> None:
        """Bring up to date what was asked of the plan before: Lightning's end, the next rate, the stages' keys."""
        context = self.context
        context.trainer.fit_loop.epoch_loop.max_steps = min(self._max_steps, context.plan.num_steps)
        self._set_rate()
        self._keep_keys()

    def _keep_keys(self) -> None:
        context = self.context
        keys = stage_keys(context.data, context.module, context.plan, self._settings)
        self._stage_keys = [key.trained for key in keys]

    def _is_validation_due(self) -> bool:
        every, step = self._val_every_n_steps, self.context.step
        if not self.context.module.val_abilities or not self.context.trainer.enable_validation:
            return False
        plan = self.context.plan
        ends_segment = decides_by_validation(plan) and step == plan.num_compiled_steps
        is_due = ends_segment or bool(every and step % every == 0)
        return is_due or plan.stage_ending_at(step) is not None

    def _validate(self) -> None:
        """Run the validation inside fit, as the training loop itself does."""
        trainer = self.context.trainer
        self._optimizers.rest()
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True

    def _set_rate(self) -> None:
        """Give the optimizers the learning rate of the step to come."""
        context = self.context
        rate = context.module.learning_rate_at(context.step)
        for group in (group for optimizer in context.trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = rate

    def _took_over(self, saved_keys: list[str], step: int) -> bool:
        """Whether the checkpoint ends a stage that this run shares with another and was given."""
        plan = self.context.plan
        ended = plan.stage_ending_at(step)
        number = plan.stages.index(ended) if ended is not None else -1
        if not 0 <= number < len(saved_keys) or saved_keys[number] != self._stage_keys[number]:
            return False
        return plan.stages[number].stage.name in [stage["stage"] for stage in reused_stages(self.context.folder)]

    def _call(self, hook: str, stage: StagePlan) -> None:
        trainer = self.context.trainer
        for callback in cast(Any, trainer).callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(trainer, trainer.lightning_module, stage)
