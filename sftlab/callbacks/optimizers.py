"""The optimizer of the stage in training: put in place at a stage's start, at work in steps, at rest when looked at.

A schedule-free optimizer (arXiv 2405.15682) trains other weights than those that it gives: ``rest`` puts the latter in
place for validation, export and scores, ``work`` the former back.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer

from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan


class StageOptimizers:
    """The optimizer of a trainer, as the stages of a plan want it.

    Args:
        trainer: Lightning's.
        module: Builds them.
        plan: What is trained.
    """

    def __init__(self, trainer: Trainer, module: SFTModule, plan: Plan) -> None:
        self._trainer, self._module, self._plan = trainer, module, plan
        previous = None
        for planned in plan.stages:
            choice = module.optimizer_of(planned.stage)
            if previous is not None and choice != previous[0] and not planned.stage.fresh_optimizer:
                raise ValueError(
                    f"stage {planned.stage.name!r}: it has another optimizer than the stage before, whose state it "
                    "cannot carry on; set fresh_optimizer: true"
                )
            previous = (choice,)

    def begin(self, before: StagePlan | None, stage: StagePlan) -> None:
        """Start a stage: from the weights that the one before gave, with empty state where the stage asks for it.

        Args:
            before: The stage before, none at the start of the run.
            stage: The one that starts.
        """
        self.rest()
        trains_others = self._module.begin_stage(before, stage)
        if before is None or not (trains_others or stage.stage.fresh_optimizer):
            return
        choices = [self._module.optimizer_of(planned.stage) for planned in (before, stage)]
        if choices == [None, None]:  # also one that a module of the user's configures
            for optimizer in self._trainer.optimizers:
                optimizer.state.clear()
        else:
            self._module.use_optimizer(self._trainer.strategy, choices[1], stage.first_step)

    def work(self) -> None:
        """Before a step."""
        self._turn("train")

    def rest(self) -> None:
        """Before the weights are looked at."""
        self._turn("eval")

    def _turn(self, mode: str) -> None:
        for optimizer in cast(list[Any], self._trainer.optimizers):
            if callable(turn := getattr(optimizer, mode, None)):
                turn()
