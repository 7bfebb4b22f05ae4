"""Names that have moved, so that a user's file or config of an earlier release is told the new ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "exhibit": "report.exhibit",
    "runs": "run.folder",
    "callbacks.identity": "run.identity",
    "data.example": "data.prepare and data.examples",
    "data.lab": "lab.abilities",
    "data.lab_python": "lab.python",
    "evaluate.compare": "stats.paired",
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


class _Signpost(MetaPathFinder):
    """Asked last for a module: one that has moved is an error that names its new place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("sftlab.") and (now := where_now(fullname)):
            raise ModuleNotFoundError(
                f"{fullname} is {now} now; import public names from sftlab itself: from sftlab import Task",
                name=fullname,
            )
        return None


def put_up() -> None:
    """Tell of moved modules from now on."""
    if not any(isinstance(finder, _Signpost) for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())
