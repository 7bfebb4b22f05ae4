"""The tasks by name, as the command line knows them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from sftlab.lab.samples import ABILITIES
from sftlab.tasks.gsm8k import GSM8K
from sftlab.tasks.humaneval import MBPP, HumanEval
from sftlab.tasks.lab import LabTask
from sftlab.tasks.mtbench import MTBench
from sftlab.tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {
    **{task.name: task for task in (GSM8K, HumanEval, MBPP, MTBench)},
    **{f"lab_{ability}": partial(LabTask, ability) for ability in ABILITIES},
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
