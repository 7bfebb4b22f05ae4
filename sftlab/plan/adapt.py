"""An adaptive stage in training: its observations, its decisions, and the segments compiled from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sftlab.plan.adaptive import (
    AdaptivePolicy,
    DecidedShares,
    Decision,
    Observations,
    checked_decision,
    checked_state,
)
from sftlab.plan.compile import Compiler, check_stages
from sftlab.plan.plan import Plan
from sftlab.plan.stage import Stage

_SURPLUS = 1.05  # examples drawn for steps of rows, whose number cannot be known before packing


def compile_schedule(compiler: Compiler, stages: Sequence[Stage]) -> Adaptation | None:
    """Compile stages as far as they are known; return also the adaptation of the last stage if it is adaptive.

    Raises:
        ValueError: The stages do not fit the data, or an adaptive one is not the last.
    """
    check_stages(compiler, stages)
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        if stage.adaptive is None:
            compiler.append(stage)
        elif following is not None:
            raise ValueError(
                f"stage {stage.name!r} is adaptive and {following.name!r} comes after it: an adaptive stage is the "
                "last one of its schedule"
            )
        else:
            return Adaptation(compiler, stage)
    compiler.plan.is_open = False
    return None


class Adaptation:
    """Decides and compiles the segments of an adaptive stage, one after another.

    Args:
        compiler: The compiler, after the previous stages.
        stage: The adaptive stage; a copy of its policy decides.

    Attributes:
        decisions: All decisions so far; the first is made at once.
    """

    def __init__(self, compiler: Compiler, stage: Stage) -> None:
        assert stage.adaptive is not None and stage.steps is not None and stage.decide_every_n_steps is not None
        self._compiler, self._stage = compiler, stage
        self.plan: Plan = compiler.plan
        self.policy: AdaptivePolicy = copy.deepcopy(stage.adaptive)
        self.first_step = self.plan.num_compiled_steps
        self.decisions: list[Decision] = []
        self._nll_A = [0.0] * len(self.plan.abilities)
        self._val_loss: dict[str, float] = {}
        self._decide(lambda content: content)

    def observe_step(self, nll_A: Sequence[float]) -> None:
        """Add the observations of a step: the negative log likelihoods of all ranks, summed by ability."""
        self._nll_A = [total + nll for total, nll in zip(self._nll_A, nll_A, strict=True)]

    def observe_validation(self, losses: Mapping[str, float]) -> None:
        """Add the held-out losses at the end of a segment."""
        self._val_loss = dict(losses) if self.policy.needs_validation else {}

    def extend(self, agree: Callable[[Any], Any]) -> None:
        """Decide the next segment and compile it; close the plan if the stage is over or is ended.

        Args:
            agree: Broadcasts rank 0's value to all ranks.
        """
        if self.plan.num_steps > self.plan.num_compiled_steps:
            self._decide(agree)
        else:
            self.plan.is_open = False

    def _decide(self, agree: Callable[[Any], Any]) -> None:
        seen, kept = self._observations(), self.decisions[-1].keep if self.decisions else ()
        decided = checked_decision(self.policy, self._stage.name, seen, self.policy.decide(seen), kept)
        self._carry_out(Decision.from_dict(agree(decided.to_dict())))

    def _observations(self) -> Observations:
        plan, last = self.plan, self.decisions[-1] if self.decisions else None
        begin = last.observations.step if last else plan.num_compiled_steps
        tokens_A = plan.supervised_A(begin, plan.num_compiled_steps)
        losses = {
            name: nll / int(tokens)
            for name, nll, tokens in zip(plan.abilities, self._nll_A, tokens_A, strict=True)
            if tokens and last
        }
        sizes = {name: count for name, count in self._compiler.selected(self._stage).items() if count}
        shares, step = last.shares if last else {}, plan.num_compiled_steps
        length = {"num_steps": step - begin, "steps_left": self._steps_left()}
        return Observations(len(self.decisions), step, sizes, shares, losses, self._val_loss, **length)

    def _steps_left(self) -> int:
        assert self._stage.steps is not None
        return self._stage.steps - (self.plan.num_compiled_steps - self.first_step)

    def _carry_out(self, decision: Decision) -> None:
        """Compile the segment of a decision, or end the stage; then start new observations."""
        plan = self.plan
        if decision.return_to is not None:
            plan.return_to(decision.return_to)
        if decision.shares:
            self._compile(decision)
        else:
            plan.end_stage(plan.num_compiled_steps)
            plan.is_open = False
        self.decisions.append(decision)
        self._nll_A, self._val_loss = [0.0] * len(plan.abilities), {}

    def _compile(self, decision: Decision) -> None:
        stage, plan = self._stage, self.plan
        assert stage.steps is not None and stage.decide_every_n_steps is not None
        num_steps = min(decision.num_steps or stage.decide_every_n_steps, self._steps_left())
        policy = DecidedShares(decision.shares, self.policy.counted_in, self._num_examples(num_steps, decision.shares))
        budget: dict[str, Any] = {"steps": None, "epochs": 1.0}
        if plan.batch.rows is not None:
            budget = {"steps": num_steps}
        part = replace(stage, adaptive=None, decide_every_n_steps=None, policy=policy, **budget)
        self._compiler.append(part, stage.steps, stage)
        plan.is_open = self._steps_left() > 0

    def _num_examples(self, num_steps: int, shares: Mapping[str, float]) -> int:
        plan = self.plan
        if plan.batch.examples is not None:
            return num_steps * plan.batch.examples
        num_rows = num_steps * (plan.batch.rows or 1)
        if not plan.packing:
            return num_rows
        shortest = min(length for name, length in self._mean_lengths().items() if shares.get(name))
        return math.ceil(_SURPLUS * num_rows * plan.max_length / shortest)

    def _mean_lengths(self) -> dict[str, float]:
        return self._compiler.mean_lengths(self._stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "decisions": [decision.to_dict() for decision in self.decisions],
            "policy": checked_state(self.policy),
            "nll": list(self._nll_A),
            "plan": self.plan.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the decisions of a checkpoint: nothing is decided again.

        Raises:
            ValueError: The decisions lead to another plan.
        """
        for content in state["decisions"][len(self.decisions) :]:
            decision = Decision.from_dict(content)
            if self.plan.num_compiled_steps > decision.observations.step:
                self.plan.end_stage(decision.observations.step)
            self._carry_out(decision)
        self.policy.load_state_dict(state["policy"])
        self._nll_A = list(state["nll"])
        if self.plan.fingerprint() != state["plan"]:
            raise ValueError(
                "ckpt_path: the decisions of the checkpoint lead to another plan than the one it was trained by"
            )
