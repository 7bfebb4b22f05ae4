"""Adaptive: a schedule of one stage whose shares are decided while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sftlab.callbacks.schedule import StageSchedule
from sftlab.plan.adaptive import AdaptivePolicy
from sftlab.plan.stage import Stage


class Adaptive(StageSchedule):
    """One stage with an adaptive mixture: a policy sets the shares of each segment from the losses of the one before.

    The plan shows the first segment. Decisions are written to ``decisions.jsonl`` and to every checkpoint, and a
    resumed run replays them. The last stage of ``Stages`` adapts too if it sets ``adaptive`` and
    ``decide_every_n_steps``.

    Args:
        adaptive: The policy: Exp3, OnlineDataMixing, OnlineDoReMi, MSFT, DynaMiCS or your own.
        decide_every_n_steps: Optimizer steps per segment.
        abilities: The abilities to train; by default all of the data.
        options: The options of StageSchedule; the budget must be ``steps``.
    """

    def __init__(
        self, adaptive: AdaptivePolicy, decide_every_n_steps: int, abilities: list[str] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.adaptive, self.decide_every_n_steps, self.abilities = adaptive, decide_every_n_steps, abilities

    def stages(self, abilities: Sequence[str]) -> list[Stage]:
        """One stage."""
        if self.steps is None:
            raise ValueError(
                "schedule.steps: give Adaptive a budget of optimizer steps; epochs and tokens depend on what is decided"
            )
        stage = self.stage("adaptive", dict.fromkeys(self.abilities or abilities, 1.0))
        return [replace(stage, adaptive=self.adaptive, decide_every_n_steps=self.decide_every_n_steps)]
