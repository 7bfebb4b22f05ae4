"""The conductor: carries out a plan inside Lightning's loops; no other module touches their internals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer

from sftlab.callbacks.adaptation import check_held_out, check_returns, decides_by_validation
from sftlab.callbacks.context import RunContext, data_of, folder_of
from sftlab.callbacks.finite import ScaledSteps, gradient_norm, stop_at_gradient, stop_at_weights
from sftlab.callbacks.keep_best import BestKeeper
from sftlab.callbacks.micro_batches import count_in_micro_batches
from sftlab.callbacks.monitors import EarlyStoppers, check_callbacks
from sftlab.callbacks.optimizers import StageOptimizers
from sftlab.callbacks.resume_guard import ResumeGuard
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
from sftlab.screen import show

_NEVER = 2**62  # an epoch and a micro-batch that are never reached
StopEarly = Literal["stage", "run"]


class Conductor:
    """Carries out one call of ``fit``: feeds the data, starts and ends stages, adds to checkpoints.

    Args:
        trainer: Lightning's Trainer.
        module: The model.
        plan: The plan.
        extend: Appends the next segment to an open plan, or closes the plan; called after the last compiled step.
        val_every_n_steps: Also validate inside stages; stage ends are always validated.
        stop_early: What EarlyStopping ends: the stage, or the run.
        keep_best: The ability by whose held-out loss the final weights of a stage are chosen.
        average_last_n_steps: A stage ends with the mean of its weights after each of its last n steps.

    Attributes:
        context: The run.
        resume_guard: What checkpoints must match to be resumed by this run.
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
        self.resume_guard = ResumeGuard(self.context)
        self._optimizers = StageOptimizers(trainer, module, plan)
        self._stoppers = EarlyStoppers(cast(Any, trainer).callbacks)
        self._keeper = BestKeeper(self.context, keep_best, bool(val_every_n_steps))
        self._average = TailAverage(self.context, average_last_n_steps)
        self.segment_states = SegmentStates(self.context, self._optimizers.use_final_weights)
        self._ended_early: list[int] = []  # the steps at which stages ended before their plan's end
        self._ended = 0  # the step of the last stage end that is complete: exported and scored
        self._is_stop_asked = False
        self._rng_states: list[torch.Tensor] | None = None
        self._validated = 0  # the last step that was validated
        self._stage_began = 0.0
        self._norm = 0.0  # of the last step's gradients
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._scaled = ScaledSteps() if has_scaler else None
        self._take_over_loops(trainer)

    def _take_over_loops(self, trainer: Trainer) -> None:
        """Set the number of steps in Lightning's loop: the Trainer was built before the plan existed.

        If the user gave a smaller max_steps, this call ends there, but the plan stays whole, so that a resumed run
        reaches its end.
        """
        write_whole(trainer)
        loop = trainer.fit_loop.epoch_loop
        self._max_steps = loop.max_steps if loop.max_steps >= 0 else _NEVER
        loop.max_steps = min(self._max_steps, self.context.plan.num_steps)
        trainer.fit_loop.max_epochs = -1
        # The loaders already divide the plan among ranks; Lightning's sampler would shuffle it.
        trainer._accelerator_connector.use_distributed_sampler = False

    # Hooks of Lightning, called by the schedule

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run and catch up on the end of a step that was interrupted."""
        context, trainer = self.context, self.context.trainer
        self._stage_began = time.perf_counter()
        self._signals = Signals(trainer, context.folder)
        if self._rng_states is not None and len(self._rng_states) == trainer.world_size:
            torch.set_rng_state(self._rng_states[trainer.global_rank])
        self._set_rate()  # the checkpoint holds the next step's rate, which may come from a run with another plan
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
        """At the first micro-batch of a stage, set up its optimizer, with empty state if the stage asks for it."""
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
        self._optimizers.use_training_weights()

    def on_before_optimizer_step(self) -> None:
        """Stop if the gradients are not finite; publish their norm, before clipping, in ``callback_metrics``."""
        trainer, module = self.context.trainer, self.context.module
        if module.live_adapter is not None:
            module.live_adapter.drop_gradients(self.context.plan.stage_at(self.context.step))
        norm = gradient_norm(module)
        self._norm = norm
        if self._scaled is None:
            stop_at_gradient(self.context, norm)
        trainer.callback_metrics["train/gradient_norm"] = torch.tensor(norm)

    def on_train_batch_end(self, nll_A: torch.Tensor, batch_idx: int) -> None:
        """After the last micro-batch of a step, request validation if it is due; otherwise finish the step."""
        trainer = self.context.trainer
        trainer.check_val_every_n_epoch, trainer.val_check_batch = _NEVER, _NEVER
        if self._scaled is not None:
            self._scaled.add(nll_A)
            if self.context.ends_step(batch_idx):
                self._scaled.look(self.context, self._norm)
        if not self.context.ends_step(batch_idx):  # a request to stop waits until the step is complete
            self._is_stop_asked |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._is_stop_asked
        is_end, is_due = self.context.plan.stage_ending_at(self.context.step) is not None, self._is_validation_due()
        if is_end or is_due:
            self._optimizers.use_final_weights()
        self._average.observe(self._optimizers.use_final_weights)
        if is_end:
            self._signals.saved = self._save_reached()
        self._signals.look(self._save_reached)
        if is_due:
            trainer.check_val_every_n_epoch, trainer.val_check_batch = None, batch_idx + 1
        else:
            self._finish_step()

    def on_validation_end(self) -> None:
        """Finish the validated step, after ending the stage early if EarlyStopping asks for it."""
        trainer = self.context.trainer
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = trainer.global_step
            self._keeper.observe()
            if trainer.should_stop and (reason := self._stoppers.reason()) is not None:
                self._end_early(reason)
            self._finish_step()

    def on_train_end(self) -> None:
        """Save a checkpoint if the call ends inside a stage."""
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
            **self.resume_guard.state(),
            "ended_early": list(self._ended_early),
            "kept": self._keeper.state(),
            "averaged": self._average.state(),
            "rng": states,
            "validated": self._validated,
            "ended": self._ended,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the run; convert the batch count to this run's micro-batches.

        Raises:
            ValueError: Data, template, tokenizer, schedule, seed, batch or model differ; the message names them.
        """
        saved = self.resume_guard.check(checkpoint)
        self._rng_states, self._validated, self._ended = saved["rng"], saved["validated"], saved.get("ended", 0)
        self._keeper.load(saved.get("kept", {"best": None, "saved": []}))
        self._average.load(saved.get("averaged", {"count": 0, "last": 0}))
        for step in saved.get("ended_early", []):
            self._cut(step)
        ended = self.context.plan.stage_ending_at(checkpoint["global_step"])
        if ended is not None and Path(str(self.context.trainer.ckpt_path)).name == self._ended_path(ended).name:
            self._validated = self._ended = ended.end_step  # a checkpoint gets this name once exported and scored
        loop = self.context.trainer.fit_loop.epoch_loop
        if ended is not None and self._ended != ended.end_step and loop.max_steps == ended.end_step:
            loop.max_steps += 1  # else Lightning skips training, and with it the interrupted end of the stage
        count_in_micro_batches(checkpoint, self.context.trainer.accumulate_grad_batches)

    # Steps and stages

    def _finish_step(self) -> None:
        """End the stage if this step was its last; compile the next segment if it was the last compiled step."""
        context = self.context
        ended = context.plan.stage_ending_at(context.step)
        if ended is not None:
            self._end_stage(ended)
        if context.plan.is_open and context.step == context.plan.num_compiled_steps:
            self._extend(context)
            self._plan_changed()
            if ended is None and (ended := context.plan.stage_ending_at(context.step)) is not None:
                self._end_stage(ended, is_changed=True)  # the decision may have restored other weights

    def _save_reached(self) -> Path:
        """Save before validation, export and scores, so that these can be repeated if the process dies in them."""
        context = self.context
        path = checkpoint_path(context.folder, context.step)
        context.trainer.save_checkpoint(path, weights_only=False)
        return path

    def _end_stage(self, ended: StagePlan, is_changed: bool = False) -> None:
        """Export, call ``on_stage_end``, then give the checkpoint the stage's name, which marks all this as done."""
        context, trainer = self.context, self.context.trainer
        is_changed |= self._keeper.end_stage(ended) or self._average.end_stage(ended)
        stop_at_weights(context)
        if self._scaled is not None:
            self._scaled.tell(context)
        context.export(context.stage_folder(ended))
        self._call("on_stage_end", ended)
        context.log({"stage/seconds": time.perf_counter() - self._stage_began})  # if resumed, since the resume
        self._stoppers.begin_anew()
        self._ended = ended.end_step
        reached, path = checkpoint_path(context.folder, ended.end_step), self._ended_path(ended)
        if is_changed:
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                discard(reached)
        elif trainer.strategy.broadcast(is_whole(reached)):
            if trainer.is_global_zero and reached.is_dir():
                publish_folder(reached, path)  # replaces the one of a run that was resumed further back
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
        """End the current stage, or the run if ``stop_early`` is "run", because EarlyStopping asked for it."""
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
        """Update what depends on the plan: Lightning's last step, the next learning rate, the stages' keys."""
        context = self.context
        context.trainer.fit_loop.epoch_loop.max_steps = min(self._max_steps, context.plan.num_steps)
        self._set_rate()
        self.resume_guard.plan_changed()

    def _is_validation_due(self) -> bool:
        every, step = self._val_every_n_steps, self.context.step
        if not self.context.module.val_abilities or not self.context.trainer.enable_validation:
            return False
        plan = self.context.plan
        ends_segment = decides_by_validation(plan) and step == plan.num_compiled_steps
        is_due = ends_segment or bool(every and step % every == 0)
        return is_due or plan.stage_ending_at(step) is not None

    def _validate(self) -> None:
        """Run a validation inside fit, as Lightning's training loop does."""
        trainer = self.context.trainer
        self._optimizers.use_final_weights()
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True

    def _set_rate(self) -> None:
        """Set the optimizers' learning rate to that of the next step."""
        context = self.context
        rate = context.module.learning_rate_at(context.step)
        for group in (group for optimizer in context.trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = rate

    def _call(self, hook: str, stage: StagePlan) -> None:
        trainer = self.context.trainer
        for callback in cast(Any, trainer).callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(trainer, trainer.lightning_module, stage)
