"""Adaptive policies from the literature, with the formulas of their sources; a segment is a step of the source.

Exp3               Auer et al. 2002, SIAM J. Comput. 32(1), figure 1
OnlineDataMixing   Albalak et al. 2023, arXiv 2312.02406, algorithm 1
OnlineDoReMi       Xie et al. 2023, arXiv 2305.10429, algorithm 1, its weights used as the shares of training
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from sftlab.bounds import within
from sftlab.plan.adaptive import AdaptivePolicy, Observations
from sftlab.plan.policy import checked_unit
from sftlab.plan.pool import Unit, seed_from

Observed = Literal["train", "validation"]


def _softmax(logits: Mapping[str, float]) -> dict[str, float]:
    largest = max(logits.values())
    powers = {name: math.exp(value - largest) for name, value in logits.items()}
    total = math.fsum(powers.values())
    return {name: power / total for name, power in powers.items()}


class Exp3(AdaptivePolicy):
    """A bandit over abilities: each segment trains one, drawn by its probability; the loss is the reward.

    With K abilities and weights w, ability i has probability p_i = (1 - gamma) w_i / sum(w) + gamma / K. The one that
    was trained gets w_i *= exp(gamma x / (K p_i)), where x is its mean training loss over ``loss_scale``, at most 1.

    Args:
        gamma: Exploration, 0 < gamma <= 1.
        loss_scale: The loss that counts as the full reward of 1 (the authors of online data mixing divide by 10).
        seed: Seed of the draws.
    """

    def __init__(self, gamma: float = 0.1, loss_scale: float = 10.0, seed: int = 0) -> None:
        within("Exp3.gamma", gamma, 1e-6, 1)
        within("Exp3.loss_scale", loss_scale, 1e-6)
        within("Exp3.seed", seed, 0, 2**63, is_whole=True)
        self.gamma, self.loss_scale, self.seed = gamma, loss_scale, seed
        self._log_weights: dict[str, float] = {}
        self._probabilities: dict[str, float] = {}  # of the last draw

    def decide(self, observations: Observations) -> dict[str, float]:
        """Return a single drawn ability."""
        names = observations.abilities
        logs = {name: self._log_weights.get(name, 0.0) for name in names}
        for name, loss in observations.train_loss.items():
            reward = min(1.0, loss / self.loss_scale)
            logs[name] += self.gamma * reward / (len(names) * self._probabilities[name])
        shares = _softmax(logs)
        mixed = {name: (1 - self.gamma) * shares[name] + self.gamma / len(names) for name in names}
        self._log_weights, self._probabilities = logs, mixed
        rng = np.random.default_rng(seed_from("exp3", self.seed, observations.segment))
        drawn = names[min(int(np.searchsorted(np.cumsum([mixed[n] for n in names]), rng.random())), len(names) - 1)]
        return {name: float(name == drawn) for name in names}


class OnlineDataMixing(AdaptivePolicy):
    """Shares that follow the loss: an ability that is still badly predicted has more to teach (ODM).

    With K abilities, after segment t: R_i = alpha R_i + (1 - alpha) loss_i / share_i for each that was trained;
    e_t = min(1/K, sqrt(ln K / (K t))), e_0 = 1/K; share_i = (1 - K e_t) exp(e_{t-1} R_i) / sum of exp(e_{t-1} R) + e_t.

    Args:
        alpha: How much of the estimated reward stays, 0 <= alpha < 1.
        counted_in: What shares count.
    """

    def __init__(self, alpha: float = 0.9, counted_in: Unit = "examples") -> None:
        within("OnlineDataMixing.alpha", alpha, 0, 1 - 1e-9)
        checked_unit(counted_in)
        self.alpha, self.counted_in = alpha, counted_in
        self._rewards: dict[str, float] = {}

    def decide(self, observations: Observations) -> dict[str, float]:
        """Return equal shares first; then decide by the estimated rewards."""
        names, t = observations.abilities, observations.segment
        count = len(names)
        if t == 0:
            return {name: 1 / count for name in names}
        for name, loss in observations.train_loss.items():
            reward = loss / observations.shares[name]
            self._rewards[name] = self.alpha * self._rewards.get(name, 0.0) + (1 - self.alpha) * reward
        explore = _exploration(count, t)
        before = _exploration(count, t - 1)
        by_reward = _softmax({name: before * self._rewards.get(name, 0.0) for name in names})
        return {name: (1 - count * explore) * by_reward[name] + explore for name in names}


def _exploration(count: int, t: int) -> float:
    return min(1 / count, math.sqrt(math.log(count) / (count * t))) if t else 1 / count


class OnlineDoReMi(AdaptivePolicy):
    """Shares that follow the excess loss over a reference, so that no ability falls behind what is attainable.

    With K abilities: excess_i = max(loss_i - reference_i, 0), the last one of an ability that was not observed;
    a_i = share_i exp(eta excess_i); share_i = (1 - smoothing) a_i / sum(a) + smoothing / K. The source clips the excess
    of each token; here it is that of the mean.

    Args:
        reference: Loss per supervised token of a reference run, by ability: its ``val/loss/<ability>`` or
            ``train/loss/<ability>``.
        observed: What it is compared with: the held-out loss at a segment's end, or the training loss.
        eta: Step size of the exponentiated gradient.
        smoothing: Share of the uniform mixture.
        counted_in: What shares count.
    """

    def __init__(
        self,
        reference: dict[str, float],
        observed: Observed = "validation",
        eta: float = 1.0,
        smoothing: float = 1e-3,
        counted_in: Unit = "examples",
    ) -> None:
        if observed not in get_args(Observed):
            raise ValueError(f"OnlineDoReMi.observed: {observed!r} is not one of {', '.join(get_args(Observed))}")
        for name, loss in reference.items():
            within(f"OnlineDoReMi.reference.{name}", loss, 0)
        within("OnlineDoReMi.eta", eta, 0)
        within("OnlineDoReMi.smoothing", smoothing, 0, 1)
        checked_unit(counted_in)
        self.reference, self.observed, self.eta, self.smoothing = reference, observed, eta, smoothing
        self.counted_in, self.needs_validation = counted_in, observed == "validation"
        self._excess: dict[str, float] = {}

    def decide(self, observations: Observations) -> dict[str, float]:
        """Return equal shares first; then make one step of the exponentiated gradient.

        Raises:
            ValueError: An ability has no reference.
        """
        names = observations.abilities
        if missing := sorted(set(names) - set(self.reference)):
            raise ValueError(f"OnlineDoReMi.reference: no loss for {missing}; it has {sorted(self.reference)}")
        if observations.segment == 0:
            return {name: 1 / len(names) for name in names}
        losses = observations.val_loss if self.observed == "validation" else observations.train_loss
        for name in names:
            if name in losses:
                self._excess[name] = max(losses[name] - self.reference[name], 0.0)
        shares = observations.shares
        logits = {n: math.log(shares[n]) + self.eta * self._excess.get(n, 0.0) for n in names if shares[n]}
        steps = _softmax(logits)
        return {name: (1 - self.smoothing) * steps.get(name, 0.0) + self.smoothing / len(names) for name in names}
