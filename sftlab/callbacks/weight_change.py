"""How far each layer's weights moved in each stage."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import safe_open

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.heat_map import HeatMap, Panel
from sftlab.callbacks.layers import ALL, WORDS, group_of, in_order
from sftlab.callbacks.progress import say
from sftlab.files import read_jsonl
from sftlab.plan.plan import Plan, StagePlan

_TAG = "weight_change"
START = "weights-at-start"  # in a run's folder, while its first stage is trained


class Change(NamedTuple):
    """The Frobenius norm of a change, and of the weights before it."""

    norm: float
    from_norm: float

    @property
    def relative(self) -> float:
        """Return the change relative to the weights before it; nan if those are zero."""
        return self.norm / self.from_norm if self.from_norm else math.nan


class WeightChange(Callback):
    """Logs, at each stage's end, the norm of the stage's change in each group of weights (see ``group_of``).

    Compares exported folders tensor by tensor, on the CPU of rank 0: a stage's own with the one before; the first
    stage's with an export of the weights at its start, which is deleted when the stage is over.

    Tags: ``weight_change/<stage>/<group>`` is relative to the norm at the stage's start,
    ``weight_change_norm/<stage>/<group>`` absolute; the group ``all`` is the whole model.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {}  # by stage, then by group, relative

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what a resumed run has measured."""
        self._found = {}
        for line in read_jsonl(RunContext.of(trainer).folder / "metrics.jsonl"):
            for tag, value in line.items():
                if tag.startswith(f"{_TAG}/") and line["step"] <= trainer.global_step:
                    _, stage, group = tag.split("/")
                    self._found.setdefault(stage, {})[group] = value

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Save the initial weights to disk; remove them when the first stage is over."""
        context = RunContext.of(trainer)
        start = context.folder / START
        if context.step == 0:
            context.export(start)
        elif trainer.is_global_zero:
            shutil.rmtree(start, ignore_errors=True)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Compare, log and draw."""
        if not trainer.is_global_zero:
            return
        context, name = RunContext.of(trainer), stage.stage.name
        plan = context.plan
        number = plan.stages.index(stage)
        before = context.stage_folder(plan.stages[number - 1]) if number else context.folder / START
        if not before.is_dir():
            say(trainer, f"WeightChange: there is no {before} to compare stage {name} with; it is not measured")
            return
        changes = weight_changes(before, context.stage_folder(stage))
        self._found[name] = {group: change.relative for group, change in changes.items()}
        values = {f"{_TAG}/{name}/{group}": change.relative for group, change in changes.items()}
        values |= {f"{_TAG}_norm/{name}/{group}": change.norm for group, change in changes.items()}
        context.log(values)
        self._heat_map(plan).show(trainer, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the initial weights once the plan is done."""
        context = RunContext.of(trainer)
        if trainer.is_global_zero and context.step >= context.plan.num_steps:
            shutil.rmtree(context.folder / START, ignore_errors=True)

    def _heat_map(self, plan: Plan) -> HeatMap:
        """Return the heat map: stages across, groups down."""
        stages = [planned.stage.name for planned in plan.stages if planned.stage.name in self._found]
        groups = in_order({group for found in self._found.values() for group in found})
        values = [[self._found[stage].get(group, np.nan) for stage in stages] for group in groups]
        return HeatMap(
            name="weight-change",
            title="How far each stage moved the weights",
            caption="Frobenius norm of what each stage changed in each layer's weights, relative to the norm of these "
            f"weights at the stage's start. {WORDS}",
            rows=groups,
            across="stage",
            panels=[Panel("relative change", stages, np.array(values))],
            signed=False,
            form=".2%",
        )


def weight_changes(before: Path, after: Path) -> Mapping[str, Change]:
    """Compare two Hugging Face folders of one architecture, by group from input to output, ``all`` first.

    Raises:
        ValueError: The folders do not hold the same tensors.
    """
    squares: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    with ExitStack() as stack:
        old, new = _tensors(before, stack), _tensors(after, stack)
        if differing := sorted(old.keys() ^ new.keys()):
            raise ValueError(f"{before} and {after} hold different weights: {', '.join(differing[:3])}")
        for name in old:
            was, now = (files[name].get_tensor(name).float() for files in (old, new))
            norms = [float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (now - was, was)]
            for group in (ALL, group_of(name)):
                squares[group] += np.square(norms)
    return {group: Change(*map(float, np.sqrt(squares[group]))) for group in in_order(set(squares))}


def _tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return the open file of each tensor of a folder."""
    files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
