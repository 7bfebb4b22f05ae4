"""HumanEval+ and MBPP+: the problems of HumanEval and MBPP with EvalPlus' many more tests (arXiv 2305.01210).

The files are test.jsonl of the hub's data sets evalplus/humanevalplus and evalplus/mbppplus, whose records hold their
tests as programs. A program passes where it passes the tests that there were and those that were added.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sftlab.tasks.humaneval import MBPP, HumanEval

_LACKS = (
    "; a file with base_input and plus_input has inputs alone: take test.jsonl of the hub's data set evalplus/{name}"
)


@functools.cache
def _prelude() -> str:
    """Return what precedes the tests: the part of numpy that they use."""
    return Path(__file__).with_name("plain_numpy.py").read_text(encoding="utf-8") + "\n\ninstall()\n"


class HumanEvalPlus(HumanEval):
    """HumanEval+: the 164 problems of HumanEval with some 80 times as many tests.

    Args:
        path: ``test.jsonl`` of evalplus/humanevalplus, plain or gzipped.
        seconds: Wall-clock time that the tests of one program may take.
        memory_mb: Address space of one process of a program, in MiB.
        options: See ``CodeTask``.
    """

    name = "humaneval_plus"
    lacks = _LACKS.format(name="humanevalplus")

    def __init__(self, path: str, seconds: float = 20.0, memory_mb: int = 1024, **options: Any) -> None:
        super().__init__(path, seconds=seconds, memory_mb=memory_mb, **options)

    def tests(self, row: dict[str, Any]) -> str:
        """Return EvalPlus' own tests, which call the function by the name ``candidate``."""
        return _prelude() + super().tests(row)


class MBPPPlus(MBPP):
    """MBPP+: 378 problems of the sanitised MBPP with some 35 times as many tests.

    Args:
        path: ``test.jsonl`` of evalplus/mbppplus, plain or gzipped.
        first: Smallest ``task_id`` to use.
        last: Largest ``task_id`` to use.
        seconds: Wall-clock time that the tests of one program may take.
        memory_mb: Address space of one process of a program, in MiB.
        options: See ``CodeTask``.
    """

    name = "mbpp_plus"
    keys = (*MBPP.keys, "test")
    lacks = _LACKS.format(name="mbppplus")

    def __init__(
        self,
        path: str,
        first: int = 1,
        last: int = 1000,
        seconds: float = 20.0,
        memory_mb: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(path, first, last, seconds=seconds, memory_mb=memory_mb, **options)

    def tests(self, row: dict[str, Any]) -> str:
        """Return EvalPlus' own tests, which include those of ``test_list``."""
        return _prelude() + "\n".join([*row["test_imports"], row["test"]])
