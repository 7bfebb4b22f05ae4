"""The tasks by name, as on the command line; users' own by class path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftlab.config import build, named_object
from sftlab.lab.samples import ABILITIES
from sftlab.nearest import did_you_mean
from sftlab.tasks.evalplus import HumanEvalPlus, MBPPPlus
from sftlab.tasks.gsm8k import GSM8K
from sftlab.tasks.harness import LMEval
from sftlab.tasks.humaneval import MBPP, HumanEval
from sftlab.tasks.lab import LabTask
from sftlab.tasks.likelihood import Likelihood
from sftlab.tasks.mtbench import MTBench
from sftlab.tasks.task import Task

TASKS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    **{
        task.name: (task, {}) for task in (GSM8K, HumanEval, HumanEvalPlus, MBPP, MBPPPlus, MTBench, Likelihood, LMEval)
    },
    **{f"lab_{ability}": (LabTask, {"ability": ability}) for ability in ABILITIES},
}
"""Class and arguments of each name."""


def find_task(name: str) -> tuple[type[Task], dict[str, Any]]:
    """Return the class behind a name, and the arguments that the name implies.

    Args:
        name: One of ``TASKS``, the name of a class of ours, or the class path of a user's own.

    Raises:
        ValueError: There is no such task.
    """
    if name in TASKS:
        return TASKS[name]
    ours = {task.__name__: task for task, _ in TASKS.values()}
    found = named_object(name) if "." in name else ours.get(name)
    if isinstance(found, type) and issubclass(found, Task):
        return found, {}
    if found is not None:
        raise ValueError(f"--tasks: {name} is not a Task: derive the class from sftlab.Task")
    if "." in name:
        raise ValueError(f"--tasks: there is no class {name}; write module.Class, with module in the working folder")
    hint = did_you_mean(name, [*TASKS, *ours], f"there are {', '.join(TASKS)}, and your own as module.Class")
    raise ValueError(f"--tasks: no task {name!r}; {hint}")


def option_names(name: str) -> list[str]:
    """Return the prefixes of a task's options: ``--my_tasks.Capitals.path``, ``--Capitals.path``."""
    task, _ = find_task(name)
    known = {name, task.__name__} | ({task.name} if isinstance(getattr(task, "name", None), str) else set())
    return sorted(known, key=len, reverse=True)


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """Create a task by name.

    Raises:
        ValueError: The task does not exist, has no such option, or refuses a value.
    """
    task, given = find_task(name)
    return build(f"--{name}", task, {**given, **options})
