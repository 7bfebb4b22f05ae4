r"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems whose answer is one number.

Scores differ by tens of points with the rule that finds the number, so every answer is graded by several named rules:

    strict@1    the first "####" that a number follows at once; what comes after the number is not looked at, so a model
                that runs on into the next question is graded by its own answer
    flexible@1  the last number in the text, wherever it stands
    flexible@4  the number in the last box, else after the last "####" that has one, else the last one; thinking is cut
                first; LaTeX's thousands, fractions, mixed numbers (2\frac12, 2½, 2 1/2) and powers (10^3) are read, and
                units (\text{ cm}^2) are not

All read the same numbers. ``1,080``, ``18.00``, ``18.``, ``.5``, ``1e3``, ``$18``, ``-$18``, ``$-18`` and ``3/4`` (its
value) are numbers; a minus may be any of the usual Unicode ones. ``1,08`` and ``1.2.3`` are not: strict@1 refuses them,
flexible@1 sees the pieces. In flexible@1 a minus belongs to a number that it touches, unless it follows a letter,
digit or closing bracket (``16-3`` ends in 3); with a space between, only right after "=", ":" or "#" (``- 7 apples`` is
a list item). Numbers are equal by value, exactly: 18, 18.00 and 36/2 are the same.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from sftlab.data.records import BrokenRecord, read_records
from sftlab.tasks.task import Answer, Problem, Score, Task, Verdict, mean_over_problems, mean_score, options_of
from sftlab.tasks.thinking import without_thinking

_MINUS = "[-\u2212\u2010\u2011\u2013\ufe63\uff0d]"
_CURRENCY = r"\\?[$€£¥₹]"
_COMMA = "[,\u00a0\u2009\u202f]"  # separators between groups of three digits
_GAP = "[ \t\u00a0]*"
_WHOLE = rf"(?:\d{{1,3}}(?:{_COMMA}\d{{3}})+(?!\d)|\d+)"
_NUMBER = rf"(?P<number>(?:{_WHOLE}(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d{{1,3}}(?!\w))?(?:/{_WHOLE})?)"
_STRICT = re.compile(
    rf"####{_GAP}(?P<sign>\+|{_MINUS}{_GAP}(?:{_CURRENCY}{_GAP})?|{_CURRENCY}{_GAP}{_MINUS}?{_GAP})?{_NUMBER}(?![,.]?\d)"
)
_FLEXIBLE = re.compile(
    rf"(?P<sign>(?<![\w)\]]){_MINUS}(?:{_CURRENCY})?|(?<=[=:#]){_GAP}{_MINUS}{_GAP}(?:{_CURRENCY}{_GAP})?"
    rf"|{_CURRENCY}{_MINUS})?{_NUMBER}"
)


def number(text: str) -> Fraction | None:
    """Return the exact value of an extracted number; None if it has none (``3/0``, thousands of digits)."""
    top, _, bottom = text.partition("/")
    try:
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def strict(answer: str) -> str | None:
    """``strict@1``: the number after the first ``####`` that one follows."""
    return _plain(_STRICT.search(answer))


def flexible(answer: str) -> str | None:
    """``flexible@1``: the last number of the text."""
    last = deque(_FLEXIBLE.finditer(answer), maxlen=1)
    return _plain(last[0] if last else None)


def _plain(match: re.Match[str] | None) -> str | None:
    """Return a found number as ASCII digits, without separators and currency; None if it has no value."""
    if match is None:
        return None
    minus = "-" if re.search(_MINUS, match["sign"] or "") else ""
    text = minus + re.sub(_COMMA, "", match["number"])
    return text if number(text) is not None else None


_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\}|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_PART = r"(?:\{\s*(\d+)\s*\}|(\d))"
_MIXED = re.compile(
    rf"(?:(?<![\w.,/^])(?P<whole>\d+)\s*)?\\[dtc]?frac\s*{_PART}\s*{_PART}"
    r"|(?<![\w.,/^])(?P<before>\d+)\ (?P<top>\d+)/(?P<bottom>\d+)(?![\w/^]|[.,]\d)"
)
_SIGN = re.compile(r"(?:(?<![\w.,/^])(?P<whole>\d+)\s?)?(?P<fraction>[\u00bc-\u00be\u2150-\u215e\u2189])")
_POWER = re.compile(
    r"(?<![\w.,^])(?:(?P<times>\d+(?:\.\d+)?)\s*(?:\\times|\\cdot|[\u00d7*x])\s*)?(?P<base>\d{1,6})\s*"
    r"(?:\^\s*(?:\{\s*(?P<in_braces>[-\u2212]?\d{1,2})\s*\}|(?P<plain>[-\u2212]?\d{1,2}))|(?P<raised>[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,2}))"
    r"(?![\w^])"
)
_FONT = r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|operatorname|mbox|hbox|boldsymbol|bm|num)"
_LATEX = (
    (re.compile(r"(?<=\d)_(?=\d{3}(?!\d))"), ","),
    (re.compile(rf"(?<=\d)(?:(?:{_FONT})?\{{[\s,\\!;]*\}}|,?\\[,!;: ]|\\thinspace\s*|~)(?=\d{{3}}(?!\d))"), ","),
    (re.compile(rf"{_FONT}\s*\{{[^{{}}\d]*\}}\s*\^\s*(?:\{{[^{{}}]*\}}|\S)|\^\s*\{{?\s*\\circ\s*\}}?"), " "),  # cm^2
    (re.compile(rf"{_FONT}\s*\{{([^{{}}]*)\}}"), r" \1 "),
    (re.compile(r"\\[%]|\\left|\\right|\\(?:display|text)style|\\[,!;:]"), ""),
)


def _mixed(match: re.Match[str]) -> str:
    """Return a fraction, with or without a whole number before it, as one number."""
    if match["before"]:
        whole, top, bottom = int(match["before"]), int(match["top"]), int(match["bottom"])
        if not top < bottom:
            return match[0]  # two numbers
    else:
        tops, bottoms = (match[2], match[3]), (match[4], match[5])
        whole, top, bottom = int(match["whole"] or 0), int(tops[0] or tops[1]), int(bottoms[0] or bottoms[1])
    apart = " " * match.string[: match.start()][-1:].isdigit()  # 1.5\frac12 is a product
    return f"{apart}{whole * bottom + top}/{bottom}"


def _sign(match: re.Match[str]) -> str:
    top, bottom = Fraction(unicodedata.numeric(match["fraction"])).limit_denominator(10).as_integer_ratio()
    return f"{int(match['whole'] or 0) * bottom + top}/{bottom}"


def _power(match: re.Match[str]) -> str:
    exponent = match["in_braces"] or match["plain"] or unicodedata.normalize("NFKC", match["raised"])
    value = Fraction(match["times"] or 1) * Fraction(int(match["base"]) or 1) ** int(exponent.replace("\u2212", "-"))
    return str(value) if int(match["base"]) else "0"


def flexible_4(answer: str) -> str | None:
    r"""``flexible@4``: the number in the last box, else after the last ``####`` that has one, else the last number.

    Thinking is cut first; LaTeX's thousands (``1{,}000``) and fractions, mixed numbers and powers are read, units not.
    """
    text = without_thinking(answer)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _POWER.sub(_power, _SIGN.sub(_sign, _MIXED.sub(_mixed, text)))
    for box in reversed(_BOXED.findall(text)):
        if (found := flexible(box)) is not None:
            return found
    for part in reversed(text.split("####")[1:]):
        if (found := strict(f"####{part}")) is not None:
            return found
    return flexible(text)


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "flexible@1": flexible, "strict@1": strict, "flexible@4": flexible_4
}  # fmt: skip
"""The rules by name and version; a changed rule gets a new version. The first one gives the headline: it does not
count a model as bad at mathematics that was never shown ``####``."""


class GSM8K(Task):
    """GSM8K: questions asked verbatim, answers graded by every rule of ``EXTRACTORS``.

    Args:
        path: Rows with ``question`` and ``answer`` (which ends in ``#### N``): a .jsonl, .json or .parquet file,
            optionally compressed, or ``hub:<id>:<config>:<split>``.
        num_problems: Use the first this many questions; all by default.
        num_samples: Number of answers to each question; more than one adds the majority vote, maj@k.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Maximum number of tokens of an answer.
        seed: Seed of the samples.

    Raises:
        ValueError: A number is out of bounds, or several samples at temperature 0 would all be the same.
    """

    name = "gsm8k"

    def __init__(
        self,
        path: str = "hub:openai/gsm8k:main:test",
        num_problems: int | None = None,
        num_samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        self.path, self.num_problems = path, num_problems
        self.sampling = options_of(
            self.name,
            num_problems,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_samples=num_samples,
            seed=seed,
        )

    def problems(self) -> list[Problem]:
        """Return the questions in the order of the file, named by their content.

        Raises:
            ValueError: A row is malformed (a score over the other rows would be a score of something else), or the
                file has fewer rows than asked for.
        """
        problems: dict[str, Problem] = {}
        for row, record in enumerate(read_records(self.path), 1):
            question, gold = _question_and_number(f"{self.path}, record {row}", record)
            uid = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            if uid in problems:
                raise ValueError(f"{self.path}, record {row}: asks the same question as an earlier one; remove one")
            problems[uid] = Problem(uid, (question,), gold)
            if len(problems) == self.num_problems:
                break
        if len(problems) < (self.num_problems or 1):
            raise ValueError(f"{self.path}: {len(problems):,} questions, {self.num_problems or 1:,} asked for")
        return list(problems.values())

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Grade by each rule; an answer without a number is wrong."""
        gold = {problem.uid: problem.reference for problem in problems}
        verdicts = []
        for answer in answers:
            cut = "" if all(answer.complete) else " (the answer was cut at max_new_tokens)"
            for name, extract in EXTRACTORS.items():
                found = extract(answer.texts[0])
                right = found is not None and number(found) == number(gold[answer.uid])
                said = "no number" if found is None else "right" if right else f"the reference says {gold[answer.uid]}"
                verdicts.append(Verdict(answer.uid, answer.sample, name, found, float(right), said + cut))
        return verdicts

    def grading(self) -> dict[str, Any]:
        """Return the rules."""
        return {"extractors": tuple(EXTRACTORS)}

    def rules(self, problem: Problem) -> tuple[str, ...]:
        """Return names of the rules."""
        return tuple(EXTRACTORS)

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Compute accuracy by each rule, averaged over samples and then problems; with several samples also maj@k."""
        accuracies, majorities = [], []
        for name in EXTRACTORS:
            mine = [verdict for verdict in verdicts if verdict.extractor == name]
            accuracies.append(mean_over_problems(self.name, f"accuracy/{name}", mine))
            samples: dict[str, list[Verdict]] = defaultdict(list)
            for verdict in mine:
                samples[verdict.uid] += [verdict] if verdict.value is not None else []
            votes = [majority(one) for one in samples.values() if one]
            metric = f"maj@{self.sampling.num_samples}/{name}"
            majorities.append(mean_score(self.name, metric, votes, num_missing=len(samples) - len(votes)))
        return accuracies + majorities if self.sampling.num_samples > 1 else accuracies


def majority(samples: Sequence[Verdict]) -> float:
    """Return the value of the number that most samples of a problem found (Wang et al. 2022, arXiv 2203.11171).

    Samples without a number do not vote; of equally frequent numbers the one seen first wins; no vote at all is wrong.
    """
    votes: dict[Fraction | None, list[Verdict]] = defaultdict(list)
    for verdict in sorted(samples, key=lambda v: v.sample):
        if verdict.extracted is not None:
            votes[number(verdict.extracted)].append(verdict)
    winners = max(votes.values(), key=len, default=[])
    return winners[0].value or 0.0 if winners else 0.0


def _question_and_number(where: str, record: object) -> tuple[str, str]:
    if isinstance(record, BrokenRecord):
        raise ValueError(f"{where}: {record.reason}")
    texts = [record.get(key) for key in ("question", "answer")] if isinstance(record, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: a record has the texts question and answer")
    question, answer = map(str, texts)
    gold = strict(answer)
    if gold is None:
        raise ValueError(f"{where}: the answer does not end in '#### N'")
    return question, gold
