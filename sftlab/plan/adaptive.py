"""Adaptive policies: what decides the shares of a stage while it trains, and from what.

    decide(segment 0)          decide(segment 1)          decide(segment 2)
    |------ N steps ----------|------ N steps ----------|------ ...
         losses of abilities  ^    losses of abilities  ^

A policy sees what the segment that ended has shown and says which shares the next one has. Numbers in, numbers out: the
same observations lead to the same decisions.
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
    """What a policy decides from.

    Attributes:
        segment: Number of the segment that is decided, from 0 in each stage.
        step: Optimizer steps of the run that are done.
        sizes: Examples of each ability that the stage selects; the abilities to decide about.
        shares: What was decided for the segment that ended; empty before the first one.
        train_loss: Mean loss per supervised token over the segment that ended, of each ability that it trained.
        val_loss: Loss on held-out examples at its end, where the policy ``needs_validation``.
    """

    segment: int
    step: int
    sizes: dict[str, int]
    shares: dict[str, float]
    train_loss: dict[str, float]
    val_loss: dict[str, float]

    @property
    def abilities(self) -> tuple[str, ...]:
        """The abilities to decide about, sorted."""
        return tuple(sorted(self.sizes))


@dataclass(frozen=True)
class Decision:
    """What a policy decided, and from what; replayed when the run is resumed.

    Attributes:
        stage: The adaptive stage.
        shares: Of the segment that follows.
        observations: What it was decided from.
    """

    stage: str
    shares: dict[str, float]
    observations: Observations

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Decision:
        """From what ``to_dict`` gave."""
        return cls(content["stage"], dict(content["shares"]), Observations(**content["observations"]))


class AdaptivePolicy(ABC):
    """Decides the shares of a stage's next segment from what the last one has shown.

    Attributes:
        counted_in: What shares count: examples, tokens or supervised_tokens.
        needs_validation: Validate at the end of each segment; every ability needs held-out examples then.
    """

    counted_in: Unit = "examples"
    needs_validation: bool = False

    @abstractmethod
    def decide(self, observations: Observations) -> Mapping[str, float]:
        """The share of each of ``observations.abilities`` in the next segment; they sum to 1.

        Segment 0 is decided before anything is trained, so that it can be shown.
        """

    def state_dict(self) -> dict[str, Any]:
        """What ``decide`` remembers, as JSON holds it; all attributes by default."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        vars(self).update(copy.deepcopy(dict(state)))


def checked_state(policy: AdaptivePolicy) -> dict[str, Any]:
    """What a policy remembers.

    Raises:
        ValueError: JSON does not give it back as it is.
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
    """The mixture of one segment: a number of examples in decided shares, repeated where an ability has too few.

    Args:
        shares: Of each ability.
        counted_in: What they count.
        num_examples: Examples of the segment.
    """

    resample = True

    def __init__(self, shares: Mapping[str, float], counted_in: Unit, num_examples: int) -> None:
        self._shares, self.counted_in, self.num_examples = dict(shares), counted_in, num_examples

    def shares(self, pools: Sequence[Pool]) -> dict[str, float]:
        """As decided."""
        return dict(self._shares)

    def counts(self, pools: Sequence[Pool]) -> dict[str, int]:
        """Examples of each ability: shares of tokens go by the mean length of its examples."""
        shares = self._checked_shares(pools)
        per_example = {pool.ability: max(1, pool.total(self.counted_in)) / len(pool) for pool in pools}
        weights = {name: share / per_example[name] for name, share in shares.items()}
        total = math.fsum(weights.values())
        return apportion(self.num_examples, {name: weight / total for name, weight in weights.items()})
