"""Lab tasks: unseen problems of the embedded abilities, each with an exact check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sftlab.lab.abilities import check_answer, lab_problems
from sftlab.lab.grading import style_of
from sftlab.lab.options import SKILLS, LabOptions
from sftlab.tasks.task import Answer, Problem, Sampling, Score, Task, Verdict, mean_score

EXTRACTOR, STYLE = "exact@2", "style@1"
_OWN_STYLE = {"math": "worked", "code": "function", "general": "talk"}


class LabTask(Task):
    """Problems of one embedded ability. Any style that answers is right; which style it was is a score of its own.

    Args:
        ability: math, code, general, facts or translation.
        num_problems: Problems asked.
        max_new_tokens: Tokens of an answer at most.
        options: What the problems are like, as the training data's are; noise has no effect on them.
    """

    def __init__(
        self, ability: str, num_problems: int = 100, max_new_tokens: int = 96, options: LabOptions | None = None
    ) -> None:
        self.name, self.ability = f"lab_{ability}", ability
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.num_problems, self.options = num_problems, options or LabOptions()

    def problems(self) -> list[Problem]:
        """The first ``num_problems`` of the test split."""
        drawn = lab_problems(self.ability, self.num_problems, self.options)
        return [Problem(p.uid, tuple(p.prompts), p.reference, p.kind) for p in drawn]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Right or wrong; then, where a prompt could have come from another ability, whether the style is its own."""
        by_uid = {problem.uid: problem for problem in problems}
        verdicts = []
        for answer in answers:
            problem = by_uid[answer.uid]
            right, extracted, reason = check_answer(self.ability, problem.reference, answer.texts)
            verdicts.append(
                Verdict(answer.uid, answer.sample, EXTRACTOR, extracted, float(right), reason, problem.category)
            )
        return [*verdicts, *(v for answer in answers for v in self._style(by_uid[answer.uid], answer))]

    def _style(self, problem: Problem, answer: Answer) -> Iterator[Verdict]:
        own = _OWN_STYLE.get(self.ability)
        if own is None or (self.ability == "general" and problem.category not in SKILLS):
            return
        style = style_of(answer.texts[0])
        reason = "its own style" if style == own else f"answered as {style}"
        yield Verdict(answer.uid, answer.sample, STYLE, style, float(style == own), reason, problem.category)

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Accuracy, accuracy by kind of request, and the share of answers in the ability's own style."""
        scores = []
        for extractor, metric in ((EXTRACTOR, "accuracy"), (STYLE, "style")):
            chosen = [verdict for verdict in verdicts if verdict.extractor == extractor]
            kinds = sorted({verdict.category for verdict in chosen})
            if chosen:
                values = [verdict.value or 0.0 for verdict in chosen]
                scores.append(mean_score(self.name, f"{metric}/{extractor}", values))
            for kind in kinds if len(kinds) > 1 else ():
                values = [v.value or 0.0 for v in chosen if v.category == kind]
                scores.append(mean_score(self.name, f"{metric}/{kind}", values))
        return scores
