"""Adaptive: one stage over abilities whose shares are decided while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sftlab.callbacks.schedule import StageSchedule
from sftlab.plan.adaptive import AdaptivePolicy
from sftlab.plan.stage import Stage


class Adaptive(StageSchedule):
    """One stage whose mixture adapts: a policy decides the shares of each segment from what the last one has shown.

    The plan shows the first segment; decisions are in ``decisions.jsonl`` and in every checkpoint, and a resumed run
    replays them. The last stage of ``Stages`` adapts too, where it has ``adaptive`` and ``decide_every_n_steps``.

    Args:
        adaptive: The policy: Exp3, OnlineDataMixing, OnlineDoReMi or your own.
        decide_every_n_steps: Optimizer steps of a segment.
        abilities: What is trained; all that the data has by default.
        options: As of StageSchedule; the budget is ``steps``.
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
