"""Backends, which answer problems, and the dialogue of a problem, which is answered turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from sftlab.data.conversation import Turn
from sftlab.plan.pool import seed_from
from sftlab.tasks.task import Answer, Problem, Sampling


class Backend(Protocol):
    """Answers problems: a model in this process, or one behind a server."""

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Yield groups of answers as they are generated: one answer for every sample of every problem."""


class Dialogue:
    """One sample of one problem, answered turn by turn."""

    def __init__(self, problem: Problem, sample: int, sampling: Sampling) -> None:
        self.problem, self.sample = problem, sample
        self.temperature = sampling.temperature if problem.temperature is None else problem.temperature
        self.texts: list[str] = []
        self.complete: list[bool] = []
        self.missing = ""
        self.seed = seed_from("sample", sampling.seed, problem.uid, sample)

    @property
    def is_open(self) -> bool:
        """Return whether a prompt is still unanswered."""
        return not self.missing and len(self.texts) < len(self.problem.prompts)

    def turns(self) -> list[Turn]:
        """Return the conversation up to the next unanswered prompt."""
        turns = [Turn("system", self.problem.system)] if self.problem.system else []
        for prompt, text in zip(self.problem.prompts, [*self.texts, None], strict=False):
            turns.append(Turn("user", prompt))
            if text is not None:
                turns.append(Turn("assistant", text))
        return turns

    def add(self, text: str, complete: bool) -> None:
        """Add the answer to this prompt."""
        self.texts.append(text)
        self.complete.append(complete)

    def end(self, why: str) -> None:
        """End the dialogue because this prompt cannot be answered."""
        self.missing = why

    def answer(self) -> Answer:
        """Return the answer so far."""
        return Answer(self.problem.uid, self.sample, tuple(self.texts), tuple(self.complete), self.missing)


def dialogues(problems: Sequence[Problem], sampling: Sampling) -> list[Dialogue]:
    """Create the dialogues of every sample of every problem."""
    return [Dialogue(problem, i, sampling) for problem in problems for i in range(sampling.num_samples)]
