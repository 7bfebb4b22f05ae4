"""What answers problems: the protocol, and a problem's dialogue on its way through its turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from sftlab.data.conversation import Turn
from sftlab.plan.pool import seed_from
from sftlab.tasks.task import Answer, Problem, Sampling


class Backend(Protocol):
    """Something that answers problems: a model in this process, or one behind a server."""

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answers in groups, as they come; every sample of every problem once."""


class Dialogue:
    """One sample of one problem on its way through its turns."""

    def __init__(self, problem: Problem, sample: int, sampling: Sampling) -> None:
        self.problem, self.sample = problem, sample
        self.temperature = sampling.temperature if problem.temperature is None else problem.temperature
        self.texts: list[str] = []
        self.complete: list[bool] = []
        self.missing = ""
        self.seed = seed_from("sample", sampling.seed, problem.uid, sample)

    @property
    def is_open(self) -> bool:
        """Whether a prompt is still to be answered."""
        return not self.missing and len(self.texts) < len(self.problem.prompts)

    def turns(self) -> list[Turn]:
        """The conversation up to the prompt that is due."""
        turns = [Turn("system", self.problem.system)] if self.problem.system else []
        for prompt, text in zip(self.problem.prompts, [*self.texts, None], strict=False):
            turns.append(Turn("user", prompt))
            if text is not None:
                turns.append(Turn("assistant", text))
        return turns

    def add(self, text: str, complete: bool) -> None:
        """The answer to the prompt that was due."""
        self.texts.append(text)
        self.complete.append(complete)

    def end(self, why: str) -> None:
        """There is no answer to the prompt that was due."""
        self.missing = why

    def answer(self) -> Answer:
        """What was answered."""
        return Answer(self.problem.uid, self.sample, tuple(self.texts), tuple(self.complete), self.missing)


def dialogues(problems: Sequence[Problem], sampling: Sampling) -> list[Dialogue]:
    """Every sample of every problem."""
    return [Dialogue(problem, i, sampling) for problem in problems for i in range(sampling.num_samples)]
