"""The resume guard: writes a run's identity into its checkpoints and refuses the checkpoint of another run."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from sftlab import __version__
from sftlab.callbacks.context import RunContext
from sftlab.model.contents import STATE
from sftlab.run.identity import differ_in_own_callbacks, differences, reused_stages, run_identity, stage_keys
from sftlab.run.settings import OWN_CALLBACKS, Settings
from sftlab.screen import show


class ResumeGuard:
    """Knows what a run trains, and thereby which checkpoints it may resume.

    Args:
        context: The run; its data and module already follow the plan.
    """

    def __init__(self, context: RunContext) -> None:
        self._context, self._settings = context, Settings.of_trainer(context.trainer)
        self._update_identity()

    def state(self) -> dict[str, Any]:
        """The entries of a checkpoint that ``check`` reads."""
        return {"version": __version__, "identity": self._identity, "stage_keys": self._stage_keys}

    def plan_changed(self) -> None:
        """Compute the keys of the stages again, after the plan has grown or a stage has ended early."""
        context = self._context
        keys = stage_keys(context.data, context.module, context.plan, self._settings)
        self._stage_keys = [key.trained for key in keys]

    def check(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint keeps for a resume of this run.

        Raises:
            ValueError: The checkpoint belongs to another run.
        """
        saved = checkpoint.get(STATE)
        if saved is None:
            raise ValueError("ckpt_path: not a checkpoint of a staged run (start from its exported folder instead)")
        theirs = saved.get("version", "an earlier version")
        upgraded = f" (written by sftlab {theirs}, this is {__version__})" if theirs != __version__ else ""
        if lacking := sorted({"identity", "stage_keys", "rng", "validated"} - set(saved)):
            raise ValueError(
                f"ckpt_path: the checkpoint{upgraded} does not hold {', '.join(lacking)}, which resuming needs: resume "
                "with the version that wrote it, or start a new run from the folder of its last stage"
            )
        changed = differences(saved["identity"], self._identity)
        if changed and differ_in_own_callbacks(saved["identity"], self._identity):
            self._accept_other_callbacks(saved["identity"])
        elif changed and not self._is_reused_stage(saved, checkpoint["global_step"]):
            raise ValueError(
                f"ckpt_path: this run differs from the checkpoint's{upgraded} in: {', '.join(changed)}. Resume with "
                "the config (config.yaml in the run's folder), data and version that the run began with, or start a "
                "new run without --ckpt_path"
            )
        return saved

    def _accept_other_callbacks(self, saved_identity: dict[str, str]) -> None:
        """Warn, and mark the identity: the weights will be those of a run with neither set of callbacks throughout."""
        if self._context.trainer.is_global_zero:
            show(
                "Note: callbacks of yours, or what they can see, have changed since the run began. If they change "
                "training, the weights are those of neither setting (changes_training = False says that they do not)."
            )
        before, trained = saved_identity.get(f"trainer.{OWN_CALLBACKS}", "none"), self._settings.trained
        both = {**trained, OWN_CALLBACKS: [trained.get(OWN_CALLBACKS), before]}
        self._settings = replace(self._settings, trained=both)
        self._update_identity()

    def _update_identity(self) -> None:
        context = self._context
        self._identity = run_identity(context.data, context.module, context.plan, self._settings)
        self.plan_changed()

    def _is_reused_stage(self, saved: dict[str, Any], step: int) -> bool:
        """Whether the checkpoint ends a stage that this run shares with another run and took over from it."""
        context, taken = self._context, [stage["stage"] for stage in reused_stages(self._context.folder)]
        plan, keys = copy(context.plan), saved["stage_keys"]
        for early in saved.get("ended_early", []) if taken else ():  # the other run's stages ended there
            if early < plan.num_compiled_steps:
                plan.end_stage(early)
        ended = plan.stage_ending_at(step)
        number = plan.stages.index(ended) if ended is not None else -1
        if not 0 <= number < len(keys) or plan.stages[number].stage.name not in taken:
            return False
        own = stage_keys(context.data, context.module, plan, self._settings)
        return number < len(own) and bool(keys[number] == own[number].trained)
