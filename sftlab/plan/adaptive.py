"""Adaptive policies: they decide the shares of a stage during training, from what they have observed.

    decide(segment 0)          decide(segment 1)          decide(segment 2)
    |------ N steps ----------|------ N steps ----------|------ ...
         losses of abilities  ^    losses of abilities  ^

A policy gets the observations of the segment that has ended and returns the shares of the next one. Equal observations
must lead to equal decisions.

A decision may also return the stage to the state (weights and optimizer) at the end of an earlier segment. Segments are
only ever appended: the steps after that one are given up, and the next segment follows in the plan.

    |-- segment 0 --|-- segment 1 --|                    given up: segment 1
                    ^               return to the end of segment 0
                                    |-- segment 2 --| ...
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sftlab.bounds import within
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
        num_steps: Number of its optimizer steps; 0 before the first one.
        steps_left: Number of optimizer steps that the stage's budget has left; given up ones are spent.
    """

    segment: int
    step: int
    sizes: dict[str, int]
    shares: dict[str, float]
    train_loss: dict[str, float]
    val_loss: dict[str, float]
    num_steps: int = 0
    steps_left: int = 0

    @property
    def abilities(self) -> tuple[str, ...]:
        """The abilities to decide on, sorted."""
        return tuple(sorted(self.sizes))


@dataclass(frozen=True)
class NextSegment:
    """What a policy may decide besides shares.

    Attributes:
        shares: The share of each ability in the next segment; empty ends the stage.
        num_steps: Number of its optimizer steps; None: ``decide_every_n_steps``. The stage's budget cuts it.
        return_to: The segment starts from the state after this step (``observations.step`` of an earlier decision that
            kept it), and the steps after that one are given up; None: from where training is.
        keep: The steps whose state later decisions may return to: this decision's own ``observations.step``, and any
            that the decision before kept. Others are removed.
    """

    shares: Mapping[str, float]
    num_steps: int | None = None
    return_to: int | None = None
    keep: Sequence[int] = ()


@dataclass(frozen=True)
class Decision:
    """A decision of a policy with its input; replayed when the run is resumed.

    Attributes:
        stage: Name of the adaptive stage.
        shares: The shares of the next segment; empty if the stage ends.
        observations: The observations behind the decision.
        num_steps: As in ``NextSegment``.
        return_to: As in ``NextSegment``.
        keep: As in ``NextSegment``, sorted.
    """

    stage: str
    shares: dict[str, float]
    observations: Observations
    num_steps: int | None = None
    return_to: int | None = None
    keep: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether training continues from the current state and no state is kept."""
        return bool(self.shares) and not self.keep and self.return_to is None

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {**asdict(self), "keep": list(self.keep)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Decision:
        """Restore what ``to_dict`` returned, also in versions without returns."""
        seen = Observations(**content["observations"])
        others = {"num_steps": content.get("num_steps"), "return_to": content.get("return_to")}
        return cls(content["stage"], dict(content["shares"]), seen, **others, keep=tuple(content.get("keep", ())))


class AdaptivePolicy(ABC):
    """Decides the shares of a stage's next segment from the observations of the last one.

    Attributes:
        counted_in: What shares count: examples, tokens or supervised_tokens.
        needs_validation: Whether to validate at the end of each segment; every ability then needs held-out examples.
        looks_at: Abilities whose held-out losses it needs too, though the stage may not train them.
        may_return: Whether it may return to an earlier segment's end, or end the stage.
    """

    counted_in: Unit = "examples"
    needs_validation: bool = False
    looks_at: Sequence[str] = ()
    may_return: bool = False

    @abstractmethod
    def decide(self, observations: Observations) -> Mapping[str, float] | NextSegment:
        """Return the share of each of ``observations.abilities`` in the next segment; they sum to 1.

        Segment 0 is decided before training, so that it can be shown in the plan.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the policy as plain JSON values; all attributes by default."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        vars(self).update(copy.deepcopy(dict(state)))


def checked_state(policy: AdaptivePolicy) -> dict[str, Any]:
    """Return the state of a policy.

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


def checked_decision(
    policy: AdaptivePolicy,
    stage: str,
    seen: Observations,
    decided: Mapping[str, float] | NextSegment,
    kept: Sequence[int],
) -> Decision:
    """Return what a policy decided as a decision.

    Args:
        policy: The policy.
        stage: Name of the stage.
        seen: The observations.
        decided: What ``decide`` returned.
        kept: The steps whose state the previous decision kept.

    Raises:
        ValueError: The decision cannot be carried out.
    """
    if not isinstance(decided, NextSegment):
        return Decision(stage, checked_shares(policy, decided, seen.abilities), seen)
    name, keep = f"{type(policy).__name__}.decide", sorted({int(step) for step in decided.keep})
    if not policy.may_return and (keep or decided.return_to is not None or not decided.shares):
        raise ValueError(f"{name}: only a policy with may_return = True keeps states, returns or ends its stage")
    if seen.segment == 0 and (keep or not decided.shares):
        raise ValueError(f"{name}: before the first segment there is no state to keep, and the stage cannot end")
    if unknown := sorted(set(keep) - {*kept, seen.step}):
        raise ValueError(f"{name}: keep names {unknown}; the states there are were kept after {[*kept, seen.step]}")
    if decided.return_to is not None and decided.return_to not in kept:
        raise ValueError(f"{name}: return_to is {decided.return_to}; the states kept are those after {list(kept)}")
    if decided.num_steps is not None:
        within(f"{name}: num_steps", decided.num_steps, 1, is_whole=True)
    shares = checked_shares(policy, decided.shares, seen.abilities) if decided.shares else {}
    return Decision(stage, shares, seen, decided.num_steps, decided.return_to, tuple(keep))


def checked_shares(policy: AdaptivePolicy, decided: Mapping[str, float], abilities: Sequence[str]) -> dict[str, float]:
    """Return a policy's shares as plain numbers by name.

    Raises:
        ValueError: They do not name each ability or do not sum to 1.
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
        """Return the decided shares."""
        return dict(self._shares)

    def counts(self, pools: Sequence[Pool]) -> dict[str, int]:
        """Return the number of examples of each ability; shares of tokens are converted by mean lengths."""
        shares = self._checked_shares(pools)
        per_example = {pool.ability: max(1, pool.total(self.counted_in)) / len(pool) for pool in pools}
        weights = {name: share / per_example[name] for name, share in shares.items()}
        total = math.fsum(weights.values())
        return apportion(self.num_examples, {name: weight / total for name, weight in weights.items()})
