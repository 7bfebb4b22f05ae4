"""Lab tasks: unseen problems of the embedded abilities, each with an exact check."""

from __future__ import annotations

from collections.abc import Sequence

from sftlab.lab.abilities import check_answer, lab_problems
from sftlab.tasks.task import Answer, Problem, Sampling, Score, Task, Verdict, mean_score

EXTRACTOR = "exact@1"


class LabTask(Task):
    """Problems of one embedded ability.

    Args:
        ability: math, code or general.
        num_problems: Problems asked.
        max_new_tokens: Tokens of an answer at most.
    """

    def __init__(self, ability: str, num_problems: int = 100, max_new_tokens: int = 128) -> None:
        self.name, self.ability = f"lab_{ability}", ability
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.num_problems = num_problems

    def problems(self) -> list[Problem]:
        """The first ``num_problems`` of the test split."""
        drawn = lab_problems(self.ability, self.num_problems)
        return [Problem(p.uid, tuple(p.prompts), p.reference, p.kind) for p in drawn]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Right or wrong."""
        by_uid = {problem.uid: problem for problem in problems}
        verdicts = []
        for answer in answers:
            problem = by_uid[answer.uid]
            right, extracted, reason = check_answer(self.ability, problem.reference, answer.texts)
            verdicts.append(
                Verdict(answer.uid, answer.sample, EXTRACTOR, extracted, float(right), reason, problem.category)
            )
        return verdicts

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Accuracy, and accuracy by kind of request."""
        values = [verdict.value or 0.0 for verdict in verdicts]
        total = mean_score(self.name, f"accuracy/{EXTRACTOR}", values)
        kinds = sorted({verdict.category for verdict in verdicts})
        if len(kinds) < 2:
            return [total]
        by_kind = {kind: [v.value or 0.0 for v in verdicts if v.category == kind] for kind in kinds}
        return [total, *(mean_score(self.name, f"accuracy/{kind}", mine) for kind, mine in by_kind.items())]
