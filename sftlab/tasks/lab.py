"""Lab tasks: unseen problems of the embedded abilities, each with an exact check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sftlab.bounds import within
from sftlab.lab.abilities import lab_problems
from sftlab.lab.grading import grade_turns, style_of
from sftlab.lab.options import SKILLS, LabOptions
from sftlab.lab.samples import ABILITIES
from sftlab.tasks.task import Answer, Problem, Score, Task, Verdict, mean_over_problems, options_of

EXTRACTOR, STYLE = "exact@2", "style@1"
MAX_PROBLEMS = 100_000
_OWN_STYLE = {"math": "worked", "code": "function", "general": "talk"}


class LabTask(Task):
    """Problems of one embedded ability. Any style that answers is right; the style itself is a separate score.

    Args:
        ability: math, code, general, facts or translation.
        num_problems: Number of problems to ask.
        max_new_tokens: Maximum number of tokens of an answer.
        options: Options of the problems, like those of training data; noise has no effect on them.

    Raises:
        ValueError: There is no such ability, or a number is out of bounds.
    """

    def __init__(
        self, ability: str, num_problems: int = 100, max_new_tokens: int = 96, options: LabOptions | None = None
    ) -> None:
        if ability not in ABILITIES:
            raise ValueError(f"ability: {ability!r} has no lab task; there are {', '.join(ABILITIES)}")
        self.name, self.ability = f"lab_{ability}", ability
        self.sampling = options_of(self.name, num_problems, max_new_tokens=max_new_tokens)
        within(f"{self.name}.num_problems", num_problems, 1, MAX_PROBLEMS, is_whole=True)
        self.num_problems, self.options = num_problems, options or LabOptions()

    def problems(self) -> list[Problem]:
        """Return the first ``num_problems`` of the test split."""
        drawn = lab_problems(self.ability, self.num_problems, self.options)
        return [Problem(p.uid, tuple(p.prompts), p.reference, p.kind) for p in drawn]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade as right or wrong; if a prompt could come from another ability, also whether the style is its own."""
        by_uid = {problem.uid: problem for problem in problems}
        verdicts = []
        for answer in answers:
            problem = by_uid[answer.uid]
            right, extracted, reason = grade_turns(problem.reference, answer.texts)
            verdicts.append(
                Verdict(answer.uid, answer.sample, EXTRACTOR, extracted, float(right), reason, problem.category)
            )
        return [*verdicts, *(v for answer in answers for v in self._style(by_uid[answer.uid], answer))]

    def _style(self, problem: Problem, answer: Answer) -> Iterator[Verdict]:
        if not self._has_style(problem):
            return
        own = _OWN_STYLE[self.ability]
        style = style_of(answer.texts[0])
        reason = "its own style" if style == own else f"answered as {style}"
        yield Verdict(answer.uid, answer.sample, STYLE, style, float(style == own), reason, problem.category)

    def grading(self) -> dict[str, Any]:
        """Return the rules."""
        return {"extractors": (EXTRACTOR, STYLE)}

    def _has_style(self, problem: Problem) -> bool:
        return self.ability in _OWN_STYLE and (self.ability != "general" or problem.category in SKILLS)

    def rules(self, problem: Problem) -> tuple[str, ...]:
        """Return whether it is right, and its style if that is graded."""
        return (EXTRACTOR, STYLE) if self._has_style(problem) else (EXTRACTOR,)

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Compute accuracy, accuracy by kind of request, and the share of answers in the ability's own style."""
        scores = []
        for extractor, metric in ((EXTRACTOR, "accuracy"), (STYLE, "style")):
            chosen = [verdict for verdict in verdicts if verdict.extractor == extractor]
            kinds = sorted({verdict.category for verdict in chosen})
            if chosen:
                scores.append(mean_over_problems(self.name, f"{metric}/{extractor}", chosen))
            for kind in kinds if len(kinds) > 1 else ():
                mine = [verdict for verdict in chosen if verdict.category == kind]
                scores.append(mean_over_problems(self.name, f"{metric}/{kind}", mine))
        return scores
