"""Names that have moved: a user's file or config of an earlier release works, and is told the new ones."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "exhibit": "report.exhibit",
    "runs": "run.folder",
    "callbacks.identity": "run.identity",
    "data.example": "data.prepare and data.examples",
    "data.lab": "lab.abilities and lab.tokenizer",
    "data.lab_python": "lab.python",
    "evaluate.compare": "report.verdicts and stats.paired",
    "evaluate.forgetting": "stats.forgetting",
    "evaluate.generate": "evaluate.local",
    "evaluate.judge": "endpoint.client",
    "evaluate.replies": "endpoint.replies",
    "evaluate.sandbox": "sandbox.host",
    "study.figures": "report.figures",
    "study.report": "report.write",
    "study.scaling": "stats.fits",
    "study.tradeoff": "stats.tradeoff",
} | {f"evaluate.{name}": f"tasks.{name}" for name in (
    "task", "gsm8k", "humaneval", "completion", "mtbench", "judge_prompts", "likelihood", "lab", "registry",
)}  # fmt: skip
READERS = ("Reader", "PairReader", "GSM8KReader", "RFTReader", "MathReader", "AlpacaReader", "MessagesReader",
           "ShareGPTReader", "read_conversations")  # fmt: skip


def where_now(path: str) -> str | None:
    """Where a dotted path of an earlier release stands now; None where it has not moved."""
    inner = path.removeprefix("sftlab.")
    for old, new in MODULES.items():
        if inner == old or inner.startswith(f"{old}."):
            return f"sftlab.{new}{inner.removeprefix(old)}"
    module, _, name = inner.rpartition(".")
    return f"sftlab.data.readers.{name}" if module == "data.conversation" and name in READERS else None


class _Alias(Loader):
    """A module of an earlier release: whatever is asked of it comes from where it stands now."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that looks names up in the new ones."""
        places = [
            import_module(f"sftlab.{place}") for place in MODULES[spec.name.removeprefix("sftlab.")].split(" and ")
        ]

        def look_up(name: str) -> Any:
            for place in places:
                if hasattr(place, name):
                    return getattr(place, name)
            raise AttributeError(f"{spec.name} has moved, and {places[0].__name__} has no {name!r}")

        module = ModuleType(spec.name)
        vars(module)["__getattr__"] = look_up
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Tell it."""
        tell(module.__name__)


def tell(path: str) -> None:
    """Say where something stands now."""
    message = f"{path} is {where_now(path)} now; import public names from sftlab itself: from sftlab import Task"
    warnings.warn(message, FutureWarning, stacklevel=2)


class _Signpost(MetaPathFinder):
    """Asked last for a module: one that has moved is found, and its new place is told."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Alias()) if fullname.removeprefix("sftlab.") in MODULES else None


def put_up() -> None:
    """Find moved modules from now on."""
    if not any(isinstance(finder, _Signpost) for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())
