"""Whether abilities pull the weights in the same direction: cosines between their gradients, by layer."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.distributed.tensor import DTensor

from sftlab.bounds import within
from sftlab.callbacks.context import RunContext
from sftlab.callbacks.heat_map import HeatMap, Panel
from sftlab.callbacks.layers import ALL, WORDS, group_of, in_order
from sftlab.callbacks.progress import say
from sftlab.data.ability import AbilityData, PlannedData
from sftlab.data.feed import Batch, collate
from sftlab.files import read_jsonl
from sftlab.model.module import SFTModule
from sftlab.model.sharded import divide_again, local
from sftlab.plan.compile import one_pass
from sftlab.plan.plan import Plan, StagePlan

_TAG = "interference"
Dots = dict[tuple[str, str, str], float]  # group, ability, ability -> dot product of their gradients


class Interference(Callback):
    """Logs cosines between the gradients of each pair of abilities before training, at stage ends and inside stages.

    Each ability has a fixed probe: the conversations that rank first, held-out ones before training ones. A cosine of 1
    means that both abilities ask for the same step, 0 that their steps are orthogonal, below 0 that one undoes the
    other (Yu et al. 2020, arXiv 2001.06782, call that conflicting). The gradient is that of the mean loss per
    supervised token; a cosine does not depend on its length.

    Training is the same with and without it. It costs one forward and backward pass over the probes, a packed row at a
    time, and holds one gradient on the device and one per ability in main memory (of FSDP2's, a rank's shard).

    Tags: ``interference/math-code`` over all weights, ``interference/math-code/layer-00`` by group (see ``group_of``).

    Args:
        every_n_steps: Measure inside stages too.
        num_examples: Conversations in an ability's probe, at most.

    Raises:
        ValueError: A number is out of bounds.
    """

    def __init__(self, every_n_steps: int | None = None, num_examples: int = 16) -> None:
        within("Interference.num_examples", num_examples, 1, is_whole=True)
        if every_n_steps is not None:
            within("Interference.every_n_steps", every_n_steps, 1, is_whole=True)
        self.every_n_steps, self.num_examples = every_n_steps, num_examples
        self._probes: dict[str, list[Batch]] = {}
        self._found: dict[int, dict[str, float]] = {}  # by step, then by tag

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the probes; restore what a resumed run has measured."""
        context = RunContext.of(trainer)
        data = context.data
        self._probes = {name: self._probe(ability, data) for name, ability in data.abilities.items()}
        if len(self._probes) < 2:
            say(trainer, "Interference: the data has one ability, so there is nothing to compare")
        self._found = {}
        for line in read_jsonl(context.folder / "metrics.jsonl"):
            mine = {tag: value for tag, value in line.items() if tag.startswith(f"{_TAG}/")}
            if mine and line["step"] <= trainer.global_step:
                self._found.setdefault(line["step"], {}).update(mine)

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Measure before training; a later stage starts with the weights that the previous one ended with."""
        if trainer.global_step == 0:
            self._measure(RunContext.of(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after a step inside a stage, if requested."""
        context = RunContext.of(trainer)
        if context.is_due_inside(batch_idx, self.every_n_steps):
            self._measure(context)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Measure, and draw the stage's heat map."""
        context = RunContext.of(trainer)
        self._measure(context)
        if len(self._probes) > 1:
            self._heat_map(context.plan, stage).show(trainer, context.step)

    def _measure(self, context: RunContext) -> None:
        """Measure and log the cosines. Call it on every rank."""
        if len(self._probes) < 2:
            return
        dots = gradient_dots(context.trainer, context.module, self._probes)
        values = cosines(dots, list(self._probes))
        self._found[context.step] = values
        context.log(values)

    def _probe(self, ability: AbilityData, data: PlannedData) -> list[Batch]:
        """Return an ability's probe as batches of one packed row."""
        pools = [pool for pool in (ability.val_pool(), ability.pool(data.seed)) if len(pool)]
        tables, batches, wanted = {ability.name: ability.examples}, [], self.num_examples
        for pool in pools:
            chosen = pool.first(wanted)
            wanted -= len(chosen)
            if len(chosen):
                plan = one_pass("probe", chosen, 1, data.max_length)
                batches += [collate(step, plan.rows(step), plan, tables) for step in range(plan.num_steps)]
        return batches

    def _heat_map(self, plan: Plan, stage: StagePlan) -> HeatMap:
        """Pairs of abilities side by side; steps of the stage across, groups down."""
        steps = [step for step in sorted(self._found) if stage.first_step <= step <= stage.end_step]
        pairs = [f"{a}-{b}" for a, b in itertools.combinations(self._probes, 2)]
        tags = {tag for step in steps for tag in self._found[step]}
        groups = in_order({ALL, *(tag.split("/")[2] for tag in tags if tag.count("/") == 2)})
        panels = []
        for pair in pairs:
            names = [f"{_TAG}/{pair}" + ("" if group == ALL else f"/{group}") for group in groups]
            values = [[self._found[step].get(name, np.nan) for step in steps] for name in names]
            panels.append(Panel(pair, [f"{step:,}" for step in steps], np.array(values)))
        name = stage.stage.name
        return HeatMap(
            name=f"interference-{plan.stages.index(stage)}-{name}",
            title=f"Cosines between the abilities' gradients, stage {name}",
            caption=f"Cosine between the gradients of two abilities, by layer (down) and optimizer step (across), from "
            f"the start of stage {name} (step {stage.first_step:,}) to its end, on up to {self.num_examples} "
            "conversations of each ability that rank first (held-out ones before training ones), dropout off. Blue: a "
            f"step for one helps the other; red: it undoes the other. {WORDS}",
            rows=groups,
            across="optimizer step",
            panels=panels,
            signed=True,
            form=".2f",
        )


def gradient_dots(trainer: Trainer, module: SFTModule, probes: Mapping[str, list[Batch]]) -> Dots:
    """Compute the dot products of the abilities' gradients, for each pair and each with itself, by group of weights.

    Every rank runs the whole probes, so that each gradient is complete without being exchanged (DDP) or is the mean of
    equal ones (FSDP2); of sharded gradients the products of the shards are summed over ranks. Call it on every rank
    when no gradient is being accumulated: it leaves none behind.
    """
    net, dots = cast(nn.Module, module.net), defaultdict[tuple[str, str, str], float](float)
    divide_again(net)  # after a validation the outermost gradients would be missed
    parameters = [(group_of(name), p) for name, p in net.named_parameters() if p.requires_grad]
    kept: dict[str, list[torch.Tensor]] = {}
    with _undisturbed(module, net):
        for ability, batches in probes.items():
            _backward(trainer, net, batches)
            kept[ability] = [_local(p) for _, p in parameters]
            net.zero_grad(set_to_none=True)
            for other, gradients in kept.items():
                pairs = zip(parameters, gradients, kept[ability], strict=True)
                for (group, parameter), theirs, mine in pairs:
                    dots[group, other, ability] += float(theirs.double() @ mine.double()) / _num_copies(parameter)
    if any(isinstance(p, DTensor) for _, p in parameters):
        # Every rank has the same parameters, in the same order; groups of ranks may hold the same ones.
        total_K = torch.tensor(list(dots.values()), dtype=torch.float64, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(total_K)
        dots.update(zip(dots, total_K.tolist(), strict=True))
    return dict(dots)


def cosines(dots: Dots, abilities: list[str]) -> dict[str, float]:
    """Compute cosines by tag, over all weights and by group; skip a group where an ability has no gradient."""
    totals = defaultdict[tuple[str, str, str], float](float)
    for (group, a, b), value in dots.items():
        totals[group, a, b] += value
        totals[ALL, a, b] += value
    values = {}
    for group in in_order({group for group, _, _ in totals}):
        for a, b in itertools.combinations(abilities, 2):
            length = (totals[group, a, a] * totals[group, b, b]) ** 0.5
            if length > 0:
                values[f"{_TAG}/{a}-{b}" + ("" if group == ALL else f"/{group}")] = totals[group, a, b] / length
    return values


@contextmanager
def _undisturbed(module: SFTModule, net: nn.Module) -> Iterator[None]:
    """Restore random states, modes, buffers and empty gradients afterwards."""
    modes = [(child, child.training) for child in net.modules()]
    buffers = [
        (child, name, buffer, buffer.clone())
        for child in net.modules()
        for name, buffer in child._buffers.items()
        if buffer is not None
    ]
    net.zero_grad(set_to_none=True)  # as the next step would do before its first backward pass
    # Without dropout, but in training mode: activation checkpointing, which saves memory, needs it.
    net.train(bool(module.activation_checkpointing))
    try:
        with isolate_rng():
            torch.manual_seed(0)
            yield
    finally:
        net.zero_grad(set_to_none=True)
        for child, training in modes:
            child.training = training
        for child, name, buffer, before in buffers:
            child._buffers[name] = buffer.copy_(before)


def _backward(trainer: Trainer, net: nn.Module, batches: list[Batch]) -> None:
    """Compute the gradient of the probe's mean loss, in the precision of training."""
    device, total = trainer.strategy.root_device, sum(int(batch.supervised_D.sum()) for batch in batches)
    for batch in batches:
        batch = batch.to(device)
        with torch.enable_grad():  # a stage ends inside a validation, where gradients are off
            with trainer.precision_plugin.train_step_context():
                loss, _ = net(batch, torch.full((len(batch.lengths_D),), 1 / max(1, total), device=device))
            loss.backward()


def _num_copies(parameter: nn.Parameter) -> int:
    """Return how many ranks hold the same part of a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, how in sizes if how.is_replicate())


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """Return this rank's part of a gradient [elements] in main memory; zeros if the loss does not reach it."""
    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    return local(gradient).detach().cpu().flatten()
