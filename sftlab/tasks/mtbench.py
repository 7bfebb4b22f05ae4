"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): dialogues of two turns, rated from 1 to 10 by a judge model.

Every turn of every answer is rated ``repeats`` times and the ratings are averaged. If a reply has no valid rating,
another is requested; what is then still missing is counted and shown, and is in no mean:

    a turn with one rating at least    has a value, the mean of its ratings
    a turn without any                 has none; it is missing in its scores, and its question in the overall score
    judgements_missing                 part of all the judgements asked for that never gave a rating
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sftlab.bounds import within
from sftlab.data.records import BrokenRecord, read_records
from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat, Reply
from sftlab.files import cache_root
from sftlab.screen import tell_progress
from sftlab.tasks.judge_prompts import RATING, JudgePrompts, read_rating
from sftlab.tasks.task import Answer, Problem, Score, Task, Verdict, mean_over_problems, mean_score, options_of

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
}
"""Temperature of the answers by category, as in the public harness; 0.7 in any other."""
GUIDED = ("math", "reasoning", "coding")
"""Categories that are judged beside a reference answer."""
_LACKING = "judgements missing"
RETRIES = 2
"""Further rounds for judgements that gave no rating."""


class _Turn:
    """One turn of one answer while its ratings are collected."""

    def __init__(self, answer: Answer, number: int, messages: tuple[tuple[str, str], ...], repeats: int) -> None:
        self.answer, self.number, self.messages = answer, number, messages
        self.due, self.next_sample = list(range(repeats)), repeats
        self.ratings: dict[int, float] = {}
        self.trouble = ""

    def take(self, sample: int, reply: Reply | ChatFailed) -> None:
        """Store the reply to a request for a judgement."""
        rating = None if isinstance(reply, ChatFailed) else read_rating(reply.texts[0])
        if rating is not None:
            self.ratings[sample] = rating
        elif isinstance(reply, ChatFailed) or reply.why_missing:
            self.trouble = str(reply) if isinstance(reply, ChatFailed) else f"the judge gave {reply.why_missing}"
            self.due.append(sample)
        else:
            cut = "" if reply.complete[0] else ", cut at judge_max_tokens"
            self.trouble = f"a judgement without [[rating]] from 1 to 10{cut}"
            self.due.append(self.next_sample)
            self.next_sample += 1


class MTBench(Task):
    """Questions asked turn by turn, answers rated by a judge at any OpenAI-compatible endpoint.

    Args:
        path: Questions: ``question_id``, ``category`` and ``turns`` (one or two) in each row.
        judge_url: The judge's endpoint, such as ``https://api.openai.com/v1``.
        judge_model: The endpoint's name of the judge.
        references: Reference answers, needed if a question is of a category in ``GUIDED``: ``question_id`` and
            ``choices[0].turns`` in each row.
        prompts: Judge prompts, see ``judge_prompts``; our own by default.
        num_problems: Questions asked, spread evenly over the file, which lists them by category; all by default.
        repeats: Ratings of each turn.
        judge_key: Environment variable that holds the endpoint's key.
        judge_temperature: None leaves it to the endpoint.
        judge_max_tokens: Tokens of a judgement at most; one cut before its rating gives none.
        judge_cache: File of judgements; left out, one for all runs in SFTLAB_CACHE or ~/.cache/sftlab. A judgement is
            taken from it where model, URL and all that was asked are the same.
        num_parallel: Judgements asked for at once.
        timeout_s: Seconds that one request may take.
        max_new_tokens: Maximum number of tokens of each turn's answer.
        seed: Seed of the answers.

    Raises:
        ValueError: The endpoint's URL is invalid, ``judge_key`` is not the name of a variable, or a number is out of
            bounds.
    """

    name = "mt_bench"
    best = 10.0

    def __init__(
        self,
        path: str,
        judge_url: str,
        judge_model: str,
        references: str | None = None,
        prompts: str | None = None,
        num_problems: int | None = None,
        repeats: int = 3,
        judge_key: str = "OPENAI_API_KEY",
        judge_temperature: float | None = 0.0,
        judge_max_tokens: int = 2048,
        judge_cache: str | None = None,
        num_parallel: int = 8,
        timeout_s: float = 180.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        within("mt_bench.repeats", repeats, 1, 1000, is_whole=True)
        within("mt_bench.judge_max_tokens", judge_max_tokens, 1, 1_000_000, is_whole=True)
        if judge_temperature is not None:
            within("mt_bench.judge_temperature", judge_temperature, 0, 100)
        self.path, self.references, self.prompts, self.num_problems = path, references, prompts, num_problems
        self.repeats, self.judge_temperature, self.judge_max_tokens = repeats, judge_temperature, judge_max_tokens
        self.sampling = options_of(self.name, num_problems, max_new_tokens=max_new_tokens, temperature=0.7, seed=seed)
        cache = Path(judge_cache) if judge_cache else _default_cache()
        self.judge = ChatClient(judge_url, judge_model, judge_key, cache, num_parallel, timeout_s)

    @cached_property
    def _prompts(self) -> JudgePrompts:
        return JudgePrompts.read(self.prompts) if self.prompts else JudgePrompts.own()

    def problems(self) -> list[Problem]:
        """Return the questions in the order of the file; ``reference`` is the reference answer's turns or None.

        Raises:
            ValueError: A file is malformed or lacks something, or the judge's key is missing; told before any answer is
                generated.
        """
        self.judge.require()
        assert self._prompts
        references = _read_references(self.references) if self.references else {}
        problems: dict[str, Problem] = {}
        for row, record in enumerate(read_records(self.path), 1):
            where = f"{self.path}, record {row}"
            uid, category, turns = _question(where, record)
            if uid in problems:
                raise ValueError(f"{where}: question_id {uid} is there twice")
            reference = references.get(uid) if category in GUIDED else None
            if category in GUIDED and (reference is None or len(reference) < len(turns)):
                lacking = (
                    f"{self.references} has none for every turn" if self.references else "give mt_bench.references"
                )
                raise ValueError(f"{where}: {category} is judged beside a reference answer; {lacking}")
            problems[uid] = Problem(uid, tuple(turns), reference, category, TEMPERATURES.get(category))
        count = self.num_problems or len(problems) or 1
        if len(problems) < count:
            raise ValueError(f"{self.path}: {len(problems)} questions, {count} asked for")
        return [list(problems.values())[i * len(problems) // count] for i in range(count)]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Have every turn rated; return a verdict per turn and one for both. A failed question stops no other."""
        by_uid = {problem.uid: problem for problem in problems}
        turns = [
            _Turn(answer, number, self._messages(by_uid[answer.uid], answer, number), self.repeats)
            for answer in answers
            for number in range(len(answer.texts))
        ]
        for _ in range(1 + RETRIES):
            asked = [(turn, sample) for turn in turns for sample in turn.due]
            for turn in turns:
                turn.due = []
            chats = [Chat(t.messages, self.judge_temperature, self.judge_max_tokens, sample=s) for t, s in asked]
            for (turn, sample), reply in zip(
                asked, self.judge.chat_all(chats, partial(tell_progress, "mt_bench, judgements")), strict=True
            ):
                turn.take(sample, reply)
            if self.judge.down:
                break
        of_answer: dict[tuple[str, int], list[_Turn]] = defaultdict(list)
        for turn in turns:
            of_answer[turn.answer.uid, turn.answer.sample].append(turn)
        return [
            verdict for (uid, _), mine in of_answer.items() for verdict in self._verdicts(mine, by_uid[uid].category)
        ]

    def _messages(self, problem: Problem, answer: Answer, number: int) -> tuple[tuple[str, str], ...]:
        """Return the request to the judge about one turn."""
        fields = {"question": problem.prompts[number], "answer": answer.texts[number]}
        for i, (prompt, text) in enumerate(zip(problem.prompts, answer.texts, strict=True), 1):
            fields |= {f"question_{i}": prompt, f"answer_{i}": text}
        for i, text in enumerate(problem.reference or (), 1):
            fields[f"ref_answer_{i}"] = text
        name = f"single{'-math' if problem.reference else ''}-v1{'-multi-turn' if number else ''}"
        return self._prompts.by_name[name].messages(fields)

    def _verdicts(self, turns: Sequence[_Turn], category: str) -> list[Verdict]:
        """Return the verdicts of one answer: each turn, then both (no value unless every turn has one)."""
        answer, verdicts = turns[0].answer, []
        for turn in turns:
            ratings = [turn.ratings[sample] for sample in sorted(turn.ratings)]
            value = sum(ratings) / len(ratings) if ratings else None
            lacking = f"{self.repeats - len(ratings)} of {self.repeats} {_LACKING}: {turn.trouble}"
            reason = f"{len(ratings)} ratings" if len(ratings) == self.repeats else lacking
            found = ", ".join(f"{rating:g}" for rating in ratings) or None
            rule = self._extractor(f"turn{turn.number + 1}")
            verdicts.append(Verdict(answer.uid, answer.sample, rule, found, value, reason, category))
        values = [verdict.value for verdict in verdicts if verdict.value is not None]
        both = sum(values) / len(values) if len(values) == len(verdicts) else None
        found = ", ".join(f"{value:.3g}" for value in values) or None
        reason = "mean of the turns" if both is not None else "a turn has no rating"
        rule = self._extractor("overall")
        return [*verdicts, Verdict(answer.uid, answer.sample, rule, found, both, reason, category)]

    def _extractor(self, what: str) -> str:
        """Return the extractor's name: ratings by other judges or prompts are different measurements."""
        return f"{self.judge.model}/{self._prompts.label}/{what}"

    def grading(self) -> dict[str, Any]:
        """Return judge, wording and number of ratings."""
        judge = {
            "judge": self.judge.model,
            "endpoint": self.judge.base_url,
            "temperature": self.judge_temperature,
            "max_tokens": self.judge_max_tokens,
        }
        return {**judge, "prompts": self._prompts.label, "repeats": self.repeats, "reading": RATING}

    def rules(self, problem: Problem) -> list[str]:
        """Return each turn, then both."""
        turns = [f"turn{number}" for number in range(1, len(problem.prompts) + 1)]
        return [self._extractor(what) for what in (*turns, "overall")]

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Compute overall, per-turn and per-category means over questions, and the share of missing ratings."""
        overall = self._extractor("overall")
        rules = sorted({verdict.extractor for verdict in verdicts} - {overall})
        scores = [self._mean("rating", [v for v in verdicts if v.extractor == overall])]
        for rule in rules:
            scores.append(self._mean(f"rating/{rule.rsplit('/', 1)[1]}", [v for v in verdicts if v.extractor == rule]))
        for category in dict.fromkeys(verdict.category for verdict in verdicts):
            mine = [v for v in verdicts if v.extractor == overall and v.category == category]
            scores.append(self._mean(f"rating/{category}", mine))
        by_turn = [v for v in verdicts if v.extractor != overall and (v.extracted or _LACKING in v.reason)]
        missing = [1 - len((v.extracted or "").split()) / self.repeats for v in by_turn]
        return [*scores, mean_score(self.name, "judgements_missing", missing)]

    def _mean(self, metric: str, verdicts: Sequence[Verdict]) -> Score:
        return mean_over_problems(self.name, metric, verdicts, binary=False)


def _question(where: str, record: Any) -> tuple[str, str, list[str]]:
    if isinstance(record, BrokenRecord):
        raise ValueError(f"{where}: {record.reason}")
    if not isinstance(record, dict) or not {"question_id", "category", "turns"} <= set(record):
        raise ValueError(f"{where}: a question has question_id, category and turns")
    turns = record["turns"]
    if not isinstance(turns, list) or len(turns) not in (1, 2) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{where}: turns must be a list of one or two texts")
    return str(record["question_id"]), str(record["category"]), turns


def _read_references(path: str) -> dict[str, list[str]]:
    """Read the turns of the reference answers by question."""
    references = {}
    for row, record in enumerate(read_records(path), 1):
        where = f"{path}, record {row}"
        if isinstance(record, BrokenRecord):
            raise ValueError(f"{where}: {record.reason}")
        try:
            uid, turns = str(record["question_id"]), record["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{where}: a reference has question_id and choices, each with turns") from None
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError(f"{where}: turns must be a list of texts")
        references[uid] = turns
    return references


def _default_cache() -> Path:
    return cache_root() / "judgements.jsonl"
