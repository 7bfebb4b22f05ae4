"""Adaptive policies that return the stage to the state at the end of an earlier segment.

MSFT       mSFT, arXiv 2603.21606
DynaMiCS   arXiv 2605.10770

Both follow the abstracts of their papers; what these leave open was decided here and is listed in each class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from sftlab.bounds import within
from sftlab.plan.adaptive import AdaptivePolicy, NextSegment, Observations
from sftlab.plan.policy import checked_unit
from sftlab.plan.pool import Unit

_SLACK = 1e-9  # relative to a level that was just found to be the lowest attainable


class MSFT(AdaptivePolicy):
    """Stops each ability at its best state, starting with the one that over-fits first.

    Of the paper: train the active abilities for the steps of a roll-out; the one whose held-out loss had its minimum
    first over-fits first; return to the state of that minimum, exclude the ability, and go on with the others, until
    none is left or the budget is spent.

    Ours: the minimum is looked for at the ends of segments, the state that the roll-out began from among them (but for
    the first roll-out, which begins before anything is measured); ``patience``; where two have their minimum at the
    same step, the one goes whose loss has risen more since, in proportion. A roll-out in which none over-fits is
    followed by another from where it ended. Where the budget ends inside a roll-out, the stage ends with the weights
    that it has then. Active abilities have shares as the examples that they have.

    Args:
        rollout_steps: Optimizer steps of a roll-out; a multiple of ``decide_every_n_steps``, or rounded up to one.
        patience: An ability over-fits where at least this many ends of segments follow its minimum in the roll-out.
        counted_in: What shares count.
    """

    needs_validation, may_return = True, True

    def __init__(self, rollout_steps: int, patience: int = 1, counted_in: Unit = "examples") -> None:
        within("MSFT.rollout_steps", rollout_steps, 1, is_whole=True)
        within("MSFT.patience", patience, 1, is_whole=True)
        checked_unit(counted_in)
        self.rollout_steps, self.patience, self.counted_in = rollout_steps, patience, counted_in
        self._active: list[str] = []
        self._trained = 0  # steps of the roll-out
        self._steps: list[int] = []  # the steps after which its states were kept
        self._losses: dict[str, list[float]] = {}  # held-out losses of its states, by ability

    def decide(self, observations: Observations) -> NextSegment:
        """Train on; at a roll-out's end, exclude the ability that over-fits first and return to its best state.

        Raises:
            ValueError: No ability could ever be excluded.
        """
        self._check(observations)
        if observations.segment == 0:
            self._active = list(observations.abilities)
            return NextSegment(self._shares(observations))
        self._trained += observations.num_steps
        self._steps.append(observations.step)
        for name in self._active:
            self._losses.setdefault(name, []).append(observations.val_loss[name])
        if self._trained < self.rollout_steps:
            best = {self._steps[self._best(name)] for name in self._active}
            return NextSegment(self._shares(observations), keep=sorted(best))
        excluded = self._first_to_overfit()
        if excluded is None:
            self._begin(len(self._steps) - 1)
            return NextSegment(self._shares(observations), keep=self._steps)
        self._active.remove(excluded)
        self._begin(self._best(excluded))
        (back,) = self._steps
        return NextSegment(self._shares(observations), return_to=back, keep=[back] if self._active else [])

    def _check(self, observations: Observations) -> None:
        if observations.segment == 0 and self.rollout_steps >= observations.steps_left:
            raise ValueError(
                f"MSFT.rollout_steps: {self.rollout_steps:,} steps are no less than the stage's "
                f"{observations.steps_left:,}, so that none would ever be excluded; make it smaller"
            )
        num_segments = math.ceil(self.rollout_steps / max(1, observations.num_steps))
        if observations.segment == 1 and self.patience > num_segments:
            raise ValueError(
                f"MSFT.patience: {self.patience} ends of segments never follow a minimum in a roll-out of "
                f"{num_segments}, so that none would ever be excluded; lower patience or decide_every_n_steps"
            )

    def _begin(self, place: int) -> None:
        """Begin a roll-out from one of the states of the last one."""
        self._trained, self._steps = 0, [self._steps[place]]
        self._losses = {name: [losses[place]] for name, losses in self._losses.items() if name in self._active}

    def _best(self, name: str) -> int:
        """Return the first position of the lowest held-out loss."""
        return self._losses[name].index(min(self._losses[name]))

    def _first_to_overfit(self) -> str | None:
        last = len(self._steps) - 1
        over = [name for name in self._active if self._best(name) <= last - self.patience]
        return min(over, key=lambda name: (self._best(name), -self._rise(name), name), default=None)

    def _rise(self, name: str) -> float:
        lowest = min(self._losses[name])
        return self._losses[name][-1] / lowest if lowest else math.inf

    def _shares(self, observations: Observations) -> dict[str, float]:
        """Return shares by size for the active abilities; empty if none is left."""
        sizes = {name: observations.sizes[name] for name in self._active}
        total = sum(sizes.values())
        return {name: sizes.get(name, 0) / total for name in observations.abilities} if total else {}


class DynaMiCS(AdaptivePolicy):
    """Shares that lower the held-out losses of some abilities while others stay at or below a level.

    Of the paper: at each update, a short probing run on each ability alone, from the current weights, gives the slopes
    S[d, e], by how much a step on d changes the held-out loss of e. The shares w minimise the predicted losses of the
    targets, the sum over targets of (w S)_e, so that each constrained ability stays at or below its level: loss_e +
    horizon (w S)_e <= level_e. They are trained with for a number of steps, then it is probed again.

    Ours: the first segment has shares by size, and the first probes come after it. The horizon is the length of the
    segments that are not probes, ``decide_every_n_steps``, or what is left of the budget. Where no shares keep all
    levels, those are taken that miss them least (the largest miss counts); among equals, always, those with the lowest
    sum over targets. No probes that would take more than half of the steps left: then the last shares stay. Both
    programs are solved by ``scipy.optimize.linprog``.

    Args:
        levels: Held-out loss that each constrained ability must not exceed; null: its loss after the first segment.
        targets: Abilities whose losses are to fall; by default those of the stage that have no level.
        probe_steps: Optimizer steps of each probe; they are given up, and count as steps of the stage.
        counted_in: What shares count.

    Raises:
        ValueError: An argument is out of bounds, or scipy is not installed.
    """

    needs_validation, may_return = True, True

    def __init__(
        self,
        levels: dict[str, float | None],
        targets: list[str] | None = None,
        probe_steps: int = 2,
        counted_in: Unit = "examples",
    ) -> None:
        if find_spec("scipy") is None:
            raise ValueError("DynaMiCS needs scipy: pip install 'sftlab[studies]'")
        if not isinstance(levels, Mapping):
            raise ValueError(f"DynaMiCS.levels: {levels!r} gives no ability a level: {{general: 1.5}}, or null for it")
        for name, level in levels.items():
            if level is not None:
                within(f"DynaMiCS.levels.{name}", level, 0)
        if both := sorted(set(levels) & set(targets or [])):
            raise ValueError(f"DynaMiCS: {both} are targets and have a level too; an ability is one or the other")
        within("DynaMiCS.probe_steps", probe_steps, 1, is_whole=True)
        checked_unit(counted_in)
        self.levels, self.targets, self.probe_steps, self.counted_in = levels, targets, probe_steps, counted_in
        self.looks_at = sorted({*levels, *(targets or [])})
        self._shares: dict[str, float] = {}
        self._base_step: int | None = None  # of the state to probe from
        self._base_losses: dict[str, float] = {}
        self._length = 0  # steps of the segment that it ended
        self._slopes: dict[str, dict[str, float]] = {}  # of the probes so far

    def decide(self, observations: Observations) -> NextSegment:
        """Probe one ability after another from the same state, then train with the best shares from there.

        Raises:
            ValueError: There is no target, or it would never be probed.
        """
        names = observations.abilities
        needed = 2 * len(names) * self.probe_steps
        if observations.segment <= 1 and needed > observations.steps_left:
            raise ValueError(
                f"DynaMiCS.probe_steps: probes of {len(names)} abilities take {needed // 2:,} steps, more than half of "
                f"the {observations.steps_left:,} that are left of the stage, so that none would ever be made"
            )
        if observations.segment == 0:
            if not self._targets(names):
                raise ValueError("DynaMiCS: every ability has a level and none is a target; name some in targets")
            total = sum(observations.sizes.values())
            self._shares = {name: observations.sizes[name] / total for name in names}
            return NextSegment(self._shares)
        if self._base_step is None:
            self._set_levels(observations)
            if needed > observations.steps_left:
                return NextSegment(self._shares)
            self._base_step, self._base_losses = observations.step, dict(observations.val_loss)
            self._length, self._slopes = observations.num_steps, {}
            return self._probe(names)
        step, losses = self._base_step, self._base_losses
        self._slopes[names[len(self._slopes)]] = {
            name: (loss - losses[name]) / observations.num_steps for name, loss in observations.val_loss.items()
        }
        if len(self._slopes) < len(names):
            return self._probe(names, return_to=step)
        horizon = min(self._length, observations.steps_left)
        self._shares = _best_shares(self._slopes, losses, self._targets(names), self._known_levels(), horizon)
        self._base_step = None
        return NextSegment(self._shares, return_to=step)

    def _probe(self, names: Sequence[str], return_to: int | None = None) -> NextSegment:
        """Train the next ability alone."""
        assert self._base_step is not None
        alone = {name: float(place == len(self._slopes)) for place, name in enumerate(names)}
        return NextSegment(alone, self.probe_steps, return_to, keep=[self._base_step])

    def _targets(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self.levels] if self.targets is None else self.targets

    def _set_levels(self, observations: Observations) -> None:
        self.levels = {n: observations.val_loss[n] if level is None else level for n, level in self.levels.items()}

    def _known_levels(self) -> dict[str, float]:
        return {name: level for name, level in self.levels.items() if level is not None}


def _best_shares(
    slopes: Mapping[str, Mapping[str, float]],
    losses: Mapping[str, float],
    targets: Sequence[str],
    levels: Mapping[str, float],
    horizon: int,
) -> dict[str, float]:
    """Compute the shares that miss the levels least, and among those the ones that lower the targets most.

    Args:
        slopes: Change of each held-out loss by a step on each ability.
        losses: Held-out losses now.
        targets: Abilities whose summed predicted losses are minimised.
        levels: Upper bounds of the predicted losses of other abilities.
        horizon: Number of steps to predict.
    """
    from scipy.optimize import linprog

    names = sorted(slopes)
    target_D = [math.fsum(slopes[name][target] for target in targets) for name in names]
    moved_ED = [[horizon * slopes[name][e] for name in names] for e in levels]
    room_E = [level - losses[e] for e, level in levels.items()]
    num, missed = len(names), 0.0
    if levels:
        # One more variable, the largest miss: horizon (w S)_e - miss <= level_e - loss_e for each e.
        least = linprog(
            [0.0] * num + [1.0],
            A_ub=[[*moved_D, -1.0] for moved_D in moved_ED],
            b_ub=room_E,
            A_eq=[[1.0] * num + [0.0]],
            b_eq=[1.0],
            bounds=[*[(0.0, 1.0)] * num, (0.0, None)],
        )
        missed = float(least.x[-1]) + _SLACK
    limits = {"A_ub": moved_ED, "b_ub": [room + missed for room in room_E]} if levels else {}
    best = linprog(target_D, A_eq=[[1.0] * num], b_eq=[1.0], bounds=[(0.0, 1.0)] * num, **limits)
    weights = [max(0.0, float(weight)) for weight in best.x]
    total = math.fsum(weights)
    return {name: weight / total for name, weight in zip(names, weights, strict=True)}
