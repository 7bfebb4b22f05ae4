"""The optimizer of the current stage: replaced at a stage's start, and switched between training and evaluation.

A schedule-free optimizer (arXiv 2405.15682) trains other weights than its final ones: ``use_final_weights`` loads the
final weights for validation, export and scores, ``use_training_weights`` the ones to train.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer

from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan


class StageOptimizers:
    """The optimizer of a trainer, changed as the stages of a plan require.

    Args:
        trainer: Lightning's Trainer.
        module: Builds the optimizers.
        plan: The plan.
    """

    def __init__(self, trainer: Trainer, module: SFTModule, plan: Plan) -> None:
        self._trainer, self._module, self._plan = trainer, module, plan
        previous = None
        for planned in plan.stages:
            choice = module.optimizer_of(planned.stage)
            if previous is not None and choice != previous[0] and not planned.stage.fresh_optimizer:
                raise ValueError(
                    f"stage {planned.stage.name!r}: it has another optimizer than the stage before and cannot carry "
                    "on that one's state; set fresh_optimizer: true"
                )
            previous = (choice,)

    def begin(self, before: StagePlan | None, stage: StagePlan) -> None:
        """Start a stage from the weights of the previous one, with empty optimizer state if the stage asks for it.

        Args:
            before: The previous stage; None at the start of the run.
            stage: The stage that starts.
        """
        self.use_final_weights()
        trains_others = self._module.begin_stage(before, stage)
        if before is None or not (trains_others or stage.stage.fresh_optimizer):
            return
        choices = [self._module.optimizer_of(planned.stage) for planned in (before, stage)]
        if choices == [None, None]:  # also one that a user's module configures
            for optimizer in self._trainer.optimizers:
                optimizer.state.clear()
        else:
            self._module.use_optimizer(self._trainer.strategy, choices[1], stage.first_step)

    def use_training_weights(self) -> None:
        """Load the weights to train: before a step."""
        self._turn("train")

    def use_final_weights(self) -> None:
        """Load the final weights: before validation, export and scores."""
        self._turn("eval")

    def _turn(self, mode: str) -> None:
        for optimizer in cast(list[Any], self._trainer.optimizers):
            if callable(turn := getattr(optimizer, mode, None)):
                turn()
