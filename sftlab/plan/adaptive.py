"""Adaptive policies: they decide the shares of a stage while it trains, from what it has shown so far.

    decide(segment 0)          decide(segment 1)          decide(segment 2)
    |------ N steps ----------|------ N steps ----------|------ ...
         losses of abilities  ^    losses of abilities  ^

A policy gets the observations of the segment that has ended and returns the shares of the next one. Equal observations
must lead to equal decisions.
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sftlab.plan.policy import MixturePolicy, apportion
from sftlab.plan.pool import Pool, Unit


@dataclass(frozen=True)
class Observations:
    """The input of a policy's decision.

    Attributes:
        segment: Index of the segment to decide on, from 0 in each stage.
        step: Number of optimizer steps of the run so far.
        sizes: Number of examples that the stage selects of each ability; its keys are the abilities to decide on.
        shares: The shares of the segment that has ended; empty before the first one.
        train_loss: Mean loss per supervised token over that segment, for each ability that it trained.
        val_loss: Held-out loss at its end by ability, if the policy ``needs_validation``.
    """

    segment: int
    step: int
    sizes: dict[str, int]
    shares: dict[str, float]
    train_loss: dict[str, float]
    val_loss: dict[str, float]

    @property
    def abilities(self) -> tuple[str, ...]:
        """The abilities to decide on, sorted."""
        return tuple(sorted(self.sizes))


@dataclass(frozen=True)
class Decision:
    """A decision of a policy with its input; replayed when the run is resumed.

    Attributes:
        stage: Name of the adaptive stage.
        shares: The shares of the next segment.
        observations: What it was decided from.
    """

    stage: str
    shares: dict[str, float]
    observations: Observations

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Decision:
        """From what ``to_dict`` gave."""
        return cls(content["stage"], dict(content["shares"]), Observations(**content["observations"]))


class AdaptivePolicy(ABC):
    """Decides the shares of a stage's next segment from the observations of the last one.

    Attributes:
        counted_in: What shares count: examples, tokens or supervised_tokens.
        needs_validation: Whether to validate at the end of each segment; every ability then needs held-out examples.
    """

    counted_in: Unit = "examples"
    needs_validation: bool = False

    @abstractmethod
    def decide(self, observations: Observations) -> Mapping[str, float]:
        """The share of each of ``observations.abilities`` in the next segment; they sum to 1.

        Segment 0 is decided before training, so that it can be shown in the plan.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state of the policy as plain JSON values; all attributes by default."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        vars(self).update(copy.deepcopy(dict(state)))


def checked_state(policy: AdaptivePolicy) -> dict[str, Any]:
    """The state of a policy.

    Raises:
        ValueError: It does not survive a round trip through JSON.
    """
    state = policy.state_dict()
    try:
        same = json.loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{type(policy).__name__}.state_dict: a checkpoint keeps plain numbers, texts, lists and dicts with texts "
            f"as keys; this state has others: {str(state)[:200]}"
        )
    return state


def checked_shares(policy: AdaptivePolicy, decided: Mapping[str, float], abilities: Sequence[str]) -> dict[str, float]:
    """A policy's shares as plain numbers by name.

    Raises:
        ValueError: They are not a share of each ability, summing to 1.
    """
    name, shares = type(policy).__name__, {str(key): float(value) for key, value in decided.items()}
    if set(shares) != set(abilities) or any(not 0 <= share <= 1 for share in shares.values()):
        raise ValueError(f"{name}.decide: {shares} must name {list(abilities)}, each between 0 and 1")
    if abs(math.fsum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"{name}.decide: the shares sum to {math.fsum(shares.values()):.6f}; they must sum to 1")
    return {ability: shares[ability] for ability in sorted(abilities)}


class DecidedShares(MixturePolicy):
    """The mixture of one segment: a number of examples in the decided shares, repeated if an ability has too few.

    Args:
        shares: The share of each ability.
        counted_in: What shares count.
        num_examples: Number of examples in the segment.
    """

    resample = True

    def __init__(self, shares: Mapping[str, float], counted_in: Unit, num_examples: int) -> None:
        self._shares, self.counted_in, self.num_examples = dict(shares), counted_in, num_examples

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """The decided shares."""
        return dict(self._shares)

    def counts(self, pools: Sequence[Pool]) -> dict[str, int]:
        """Number of examples of each ability; shares of tokens are converted by the mean length of its examples."""
        shares = self._checked_shares(pools)
        per_example = {pool.ability: max(1, pool.total(self.counted_in)) / len(pool) for pool in pools}
        weights = {name: share / per_example[name] for name, share in shares.items()}
        total = math.fsum(weights.values())
        return apportion(self.num_examples, {name: weight / total for name, weight in weights.items()})
