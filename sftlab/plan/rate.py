"""Learning-rate schedules: factors of a stage's peak learning rate, pure functions of the step.

    factor 1 |   /------.                 Constant      stays at 1
             |  /        `.               Cosine        half a cosine down to the floor
             | /           `.             Linear        a line down to the floor
    floor    |/              `            WSD           1, then a line down to the floor
             +------------------ steps of a stage
              warm-up

Every stage has its own rise and fall. Subclass ``LRSchedule`` for your own schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from sftlab.bounds import within


class LRSchedule(ABC):
    """The course of a stage's learning rate after its warm-up."""

    is_checked_by_building = True

    @abstractmethod
    def factor(self, step: int, num_steps: int) -> float:
        """Return the factor of the peak at a step, from 0, of the ``num_steps`` that follow a stage's warm-up."""

    def with_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """Return the factor of the peak at a step of a stage, warm-up included.

        The warm-up rises linearly, starting above 0 so that no step is wasted.
        """
        if step < num_warmup_steps:
            return (step + 1) / (num_warmup_steps + 1)
        return self.factor(step - num_warmup_steps, max(1, num_steps - num_warmup_steps))


class Falling(LRSchedule):
    """A schedule that falls from the peak to a floor.

    Args:
        floor: Fraction of the peak at the end, 0 to 1.
    """

    def __init__(self, floor: float = 0.0) -> None:
        within("lr_schedule.floor", floor, 0, 1)
        self.floor = floor


class Cosine(Falling):
    """Half a cosine from the peak down to a floor (SGDR without restarts, arXiv 1608.03983).

    Args:
        floor: Fraction of the peak at the end, 0 to 1.
    """

    def factor(self, step: int, num_steps: int) -> float:
        """Return the cosine."""
        return self.floor + (1 - self.floor) * (0.5 * (1 + math.cos(math.pi * step / num_steps)))


class Linear(Falling):
    """A line from the peak down to a floor.

    Args:
        floor: Fraction of the peak at the end, 0 to 1.
    """

    def factor(self, step: int, num_steps: int) -> float:
        """Return the line."""
        return self.floor + (1 - self.floor) * (1 - step / num_steps)


class Constant(LRSchedule):
    """The peak, from the warm-up to the stage's end."""

    def factor(self, step: int, num_steps: int) -> float:
        """Return 1."""
        return 1.0


class WSD(LRSchedule):
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395): the peak, and a line down to a floor at the end.

    The decay is the linear one of arXiv 2405.18392.

    Args:
        decay_ratio: Fraction of the steps after the warm-up that decay, 0 to 1.
        floor: Fraction of the peak at the end, 0 to 1.
    """

    def __init__(self, decay_ratio: float = 0.1, floor: float = 0.0) -> None:
        within("lr_schedule.decay_ratio", decay_ratio, 0, 1)
        within("lr_schedule.floor", floor, 0, 1)
        self.decay_ratio, self.floor = decay_ratio, floor

    def factor(self, step: int, num_steps: int) -> float:
        """Return 1 until the decay, then the line."""
        decay = max(1, round(self.decay_ratio * num_steps)) if self.decay_ratio else 0
        stable = num_steps - decay
        return 1.0 if step < stable else self.floor + (1 - self.floor) * (1 - (step - stable + 1) / (decay + 1))
