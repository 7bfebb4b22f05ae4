"""Studies: many runs of one question, and what they say together. Called, it runs one: ``sftlab.study("rq3.yaml")``.

In the order of the data: study -> graph -> reuse -> job -> results -> executors -> overview -> report.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """The room and the function share their name, whichever was imported first."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As ``sftlab.launch.study``."""
        return import_module("sftlab.launch").study(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
