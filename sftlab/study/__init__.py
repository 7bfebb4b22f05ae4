"""Studies: many runs of one question, and their joint results. Called, it runs one: ``sftlab.study("rq3.yaml")``.

In the order of the data: study -> graph -> reuse -> job -> results -> executors -> overview -> report.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Makes the package callable, as package and function share their name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call ``sftlab.launch.study``."""
        return import_module("sftlab.launch").study(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
