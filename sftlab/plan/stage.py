"""A stage: abilities with fractions, a mixture policy, a budget and its own learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sftlab.bounds import within
from sftlab.files import checked_name
from sftlab.plan.adaptive import AdaptivePolicy
from sftlab.plan.curriculum import Curriculum, check_curriculum
from sftlab.plan.policy import MixturePolicy, checked_unit
from sftlab.plan.pool import Unit
from sftlab.plan.rate import LRSchedule


@dataclass(frozen=True)
class StepSize:
    """Size of an optimizer step over all ranks and accumulated micro-batches; exactly one of the two is given.

    Attributes:
        examples: Conversations per step, packed within the step (the paper's batch of 128 conversations).
        rows: Packed rows of at most ``max_length`` tokens per step.
    """

    examples: int | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of the two is given, at least 1.

        Raises:
            ValueError: Neither or both are given, or the number is not positive.
        """
        given = {name: n for name, n in (("examples", self.examples), ("rows", self.rows)) if n is not None}
        if len(given) != 1:
            raise ValueError(f"data.batch: give either examples or rows (got {given or 'neither'})")
        for unit, number in given.items():
            within(f"data.batch.{unit}", number, 1, 10**8, is_whole=True)

    def __str__(self) -> str:
        """Return number and unit."""
        return f"{self.examples} conversations" if self.examples else f"{self.rows} rows"


def check_learning_rate(key: str, rate: float) -> None:
    """Check a peak learning rate of AdamW, whose steps move each weight by about the rate itself.

    Args:
        key: Its name in a config.
        rate: What was given.

    Raises:
        ValueError: It is negative, not a number, or so large that training would diverge at once.
    """
    within(key, rate, 0, math.inf)
    if rate > 1:
        raise ValueError(
            f"{key}: {rate!r} is larger than 1: AdamW moves each weight by about that much a step, and training has "
            "diverged after the first ones; usual rates lie between 1e-6 and 1e-3"
        )


@dataclass(frozen=True)
class Stage:
    """A part of training.

    Attributes:
        name: Name of the stage in folders, tags and seeds.
        fractions: The abilities to train, each with the fraction of its selected examples.
        epochs: Budget in passes over the stage's mixture (0.5 is half a pass).
        steps: Budget in optimizer steps.
        supervised_tokens: Budget in supervised tokens: the stage ends with the step that reaches it.
        policy: How the abilities are mixed; None uses the policy of the data.
        learning_rate: Peak learning rate; None uses the model's.
        warmup_ratio: Fraction of the stage's steps that warm up; None uses the model's.
        warmup_steps: Number of warm-up steps, instead of ``warmup_ratio``.
        lr_schedule: Learning-rate schedule after the warm-up; None uses the model's.
        optimizer: Like ``model.optimizer``; None uses the model's.
        fresh_optimizer: Whether to start with empty optimizer state, as separate runs would, or carry it over.
        curriculum: Order of each pass over the mixture: shuffled, short_first, long_first, easy_first, hard_first (by
            the loss of the base), blocked (one ability after another) or interleaved.
        loss_weights: Relative weight of each ability's supervised tokens in the loss, 1 by default: how much an ability
            counts, as opposed to how often it is seen. Only the ratios matter.
        counted_in: What fractions count: examples, tokens or supervised_tokens.
        adaptive: A policy that decides the shares during training, instead of ``policy``; needs a budget in steps.
        decide_every_n_steps: Optimizer steps between two decisions.
    """

    name: str
    fractions: dict[str, float]
    epochs: float | None = None
    steps: int | None = None
    supervised_tokens: int | None = None
    policy: MixturePolicy | None = None
    learning_rate: float | None = None
    warmup_ratio: float | None = None
    warmup_steps: int | None = None
    lr_schedule: LRSchedule | None = None
    optimizer: dict[str, Any] | str | None = None
    fresh_optimizer: bool = True
    curriculum: Curriculum = "shuffled"
    loss_weights: dict[str, float] | None = None
    counted_in: Unit = "examples"
    adaptive: AdaptivePolicy | None = None
    decide_every_n_steps: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ValueError: The name is invalid, no ability is given, not exactly one budget is given, a fraction is outside
                [0, 1], or options contradict one another.
        """
        checked_name("stage", self.name)
        if not self.fractions:
            raise ValueError(f"stage {self.name!r}: names no ability to train")
        for ability, fraction in self.fractions.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"stage {self.name!r}: fraction of {ability!r} is {fraction}; it lies between 0 and 1")
        budgets = {k: v for k in ("epochs", "steps", "supervised_tokens") if (v := getattr(self, k)) is not None}
        if len(budgets) != 1 or min(budgets.values()) <= 0:
            raise ValueError(
                f"stage {self.name!r}: give one budget, larger than 0: epochs, steps or supervised_tokens "
                f"(got {budgets or 'none'})"
            )
        for unit, number in budgets.items():
            within(f"stage {self.name!r}: {unit}", number, 0, 10**6 if unit == "epochs" else 10**12, unit != "epochs")
        if self.learning_rate is not None:
            check_learning_rate(f"stage {self.name!r}: learning_rate", self.learning_rate)
        if self.warmup_ratio is not None:
            within(f"stage {self.name!r}: warmup_ratio", self.warmup_ratio, 0, 1)
        if self.warmup_steps is not None:
            within(f"stage {self.name!r}: warmup_steps", self.warmup_steps, 0, 10**9, is_whole=True)
            if self.warmup_ratio is not None:
                raise ValueError(f"stage {self.name!r}: warmup_ratio and warmup_steps say the same thing; give one")
        check_curriculum(f"stage {self.name!r}: ", self.curriculum)
        checked_unit(self.counted_in)
        self._check_adaptive()
        if unknown := sorted(set(self.loss_weights or {}) - set(self.fractions)):
            raise ValueError(f"stage {self.name!r}: loss_weights names {unknown}; it trains {sorted(self.fractions)}")
        for ability, weight in (self.loss_weights or {}).items():
            within(f"stage {self.name!r}: loss_weights.{ability}", weight, 0, 1e6)
        if not any(self.loss_weight(ability) for ability in self.fractions):
            raise ValueError(f"stage {self.name!r}: loss_weights leave nothing to train, each is 0")

    def _check_adaptive(self) -> None:
        if (self.adaptive is None) != (self.decide_every_n_steps is None):
            raise ValueError(
                f"stage {self.name!r}: adaptive and decide_every_n_steps go together, give both or neither"
            )
        if self.adaptive is None:
            return
        within(f"stage {self.name!r}: decide_every_n_steps", self.decide_every_n_steps, 1, is_whole=True)
        checked_unit(self.adaptive.counted_in)
        if self.steps is None or self.policy is not None:
            what = "a policy beside it" if self.policy is not None else "another budget"
            raise ValueError(
                f"stage {self.name!r}: an adaptive stage decides its own mixture and has a budget of steps, not "
                f"{what}: its epochs and tokens depend on what is decided"
            )

    def loss_weight(self, ability: str) -> float:
        """Return the relative weight of an ability's supervised tokens in the loss; 1 by default."""
        return float((self.loss_weights or {}).get(ability, 1.0))

    def warmup(self, model_ratio: float, model_steps: int | None) -> tuple[float | None, int | None]:
        """Return ratio and steps of the warm-up, the stage's own or else the model's; steps take precedence."""
        own = (self.warmup_ratio, self.warmup_steps)
        return own if own != (None, None) else (model_ratio, model_steps)

    def num_warmup_steps(self, num_steps: int, model_ratio: float, model_steps: int | None) -> int:
        """Return how many of the stage's ``num_steps`` warm up.

        Raises:
            ValueError: The warm-up leaves no step at the peak.
        """
        ratio, steps = self.warmup(model_ratio, model_steps)
        if steps is None:
            return int((ratio or 0.0) * num_steps)  # a stage of three steps has no warm-up at 3 %
        if steps >= num_steps:
            raise ValueError(
                f"stage {self.name!r}: warmup_steps is {steps:,}, and the stage has {num_steps:,} steps, so its rate "
                "would never reach its peak; give fewer (schedule.per_stage for one stage), or warmup_ratio"
            )
        return steps

    @property
    def weighs_abilities(self) -> bool:
        """Whether abilities have different weights in the loss."""
        return len({self.loss_weight(ability) for ability in self.fractions}) > 1

    @property
    def full_abilities(self) -> tuple[str, ...]:
        """Abilities of which the stage selects every example; forgetting is measured from such stages."""
        return tuple(ability for ability, fraction in self.fractions.items() if fraction == 1)
