"""Names that have moved: files and configs of earlier releases still work, with a warning that names the new place."""

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
    """Return the present path of a dotted path of an earlier release; None if it has not moved."""
    inner = path.removeprefix("sftlab.")
    for old, new in MODULES.items():
        if inner == old or inner.startswith(f"{old}."):
            return f"sftlab.{new}{inner.removeprefix(old)}"
    module, _, name = inner.rpartition(".")
    return f"sftlab.data.readers.{name}" if module == "data.conversation" and name in READERS else None


class _Alias(Loader):
    """Loads a module of an earlier release as an alias: its names are looked up in their new place."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Create an empty module that looks its names up in the new ones."""
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
        """Warn."""
        tell(module.__name__)


def tell(path: str) -> None:
    """Warn that a path has moved, and where to."""
    message = f"{path} is {where_now(path)} now; import public names from sftlab itself: from sftlab import Task"
    warnings.warn(message, FutureWarning, stacklevel=2)


class _Signpost(MetaPathFinder):
    """The last finder asked for a module; finds those that have moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Alias()) if fullname.removeprefix("sftlab.") in MODULES else None


def put_up() -> None:
    """Install the finder of moved modules."""
    if not any(isinstance(finder, _Signpost) for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())
