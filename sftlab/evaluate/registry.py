"""The tasks by name, as the command line knows them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from sftlab.evaluate.task import Task

LAB_ABILITIES = ("math", "code", "general")


def _lab(ability: str) -> Callable[..., Task]:
    def build(**options: Any) -> Task:
        from sftlab.evaluate.lab import LabTask

        return LabTask(ability, **options)

    return build


def _gsm8k(**options: Any) -> Task:
    from sftlab.evaluate.gsm8k import GSM8K

    return GSM8K(**options)


def _humaneval(**options: Any) -> Task:
    from sftlab.evaluate.humaneval import HumanEval

    return HumanEval(**options)


def _mbpp(**options: Any) -> Task:
    from sftlab.evaluate.humaneval import MBPP

    return MBPP(**options)


def _mt_bench(**options: Any) -> Task:
    from sftlab.evaluate.mtbench import MTBench

    return MTBench(**options)


TASKS: dict[str, Callable[..., Task]] = {
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "mt_bench": _mt_bench,
    **{f"lab_{ability}": _lab(ability) for ability in LAB_ABILITIES},
}


def build_task(name: str, options: dict[str, Any]) -> Task:
    """A task by name.

    Raises:
        ValueError: There is none of that name, or it has no such option.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise ValueError(f"--tasks: no task {name!r}; {f'did you mean {near[0]}?' if near else ', '.join(TASKS)}")
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise ValueError(f"--{name}: {error}") from None
