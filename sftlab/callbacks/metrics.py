"""Metrics: ``metrics.jsonl``, and the training metrics of each optimizer step, by ability."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sftlab.bounds import within
from sftlab.callbacks.context import RunContext
from sftlab.callbacks.folder_logger import FolderLogger
from sftlab.callbacks.hparams import StageResults, hyperparameters
from sftlab.files import appended, cut_jsonl
from sftlab.plan.plan import StagePlan
from sftlab.run.results import kept_losses

_SUMS = "sftlab_train_loss"  # of a checkpoint


class JsonlLogger(FolderLogger):
    """Appends one JSON object per call to ``metrics.jsonl``; reports read this, never event files.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._path = Path(folder) / "metrics.jsonl"
        self._known: set[tuple[int | None, frozenset[str]]] = set()  # lines of the resumed run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is saved elsewhere."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line, unless the resumed run had already written it."""
        if (step, frozenset(metrics)) in self._known:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with appended(self._path) as file:  # JSON has no nan
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run had logged and the resumed run will train again."""
        kept = cut_jsonl(self._path, step)
        self._known = {(line.get("step"), frozenset(line) - {"step"}) for line in kept}


class Metrics(Callback):
    """Logs the training loss by ability, with the amount of data seen and speed.

    ``train/loss`` is the mean over the supervised tokens of all optimizer steps since the line before, whatever the
    loss is normalised by: no step is left out between two lines. ``data/share`` counts the supervised tokens trained so
    far in the stage; ``data/examples_seen`` counts the whole run; ``perf/tokens_per_second`` counts tokens of examples,
    not padding, over all ranks. ``train/gradient_norm`` and ``train/learning_rate`` are those of the last step.

    Args:
        every_n_steps: Log every so many optimizer steps, and at stage ends; the Trainer's log_every_n_steps by default.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            within("Metrics.every_n_steps", every_n_steps, 0, is_whole=True)
        self.every_n_steps = every_n_steps
        self._nll_A = torch.zeros(0)  # with the next: sums over the steps since the last log line, per ability
        self._supervised_A = np.zeros(0, np.int64)
        self._added = 0  # the last step in the sums
        self._resumed: dict[str, list[float]] = {}
        self._seen = (0, 0.0)  # step and time of the last log line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the sums behind the log lines; a resumed run restores those of its checkpoint."""
        context, device = RunContext.of(trainer), trainer.strategy.root_device
        sums_A2 = np.array([self._resumed.get(name, [0.0, 0.0]) for name in context.plan.abilities])
        self._resumed, self._added = {}, context.step
        mine_A = sums_A2[:, 0] if trainer.is_global_zero else np.zeros(len(sums_A2))  # they are sums over ranks
        is_exact = device.type != "mps"  # MPS has no double precision
        self._nll_A = torch.tensor(mine_A, dtype=torch.float64 if is_exact else torch.float32, device=device)
        self._supervised_A = sums_A2[:, 1].astype(np.int64)
        self._seen = (context.step, time.perf_counter())
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.forget_after(context.step)
            elif isinstance(logger, TensorBoardLogger):
                StageResults.beside(logger, context)
            elif not isinstance(logger, StageResults):
                logger.log_hyperparams(hyperparameters(context))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add to the sums; log and reset them when a line is due."""
        self._nll_A += outputs["nll_A"]
        context = RunContext.of(trainer)
        if not context.ends_step(batch_idx):
            return
        self._supervised_A += context.plan.supervised_A(context.step - 1, context.step)
        self._added = context.step
        every = cast(Any, trainer).log_every_n_steps if self.every_n_steps is None else self.every_n_steps
        if (every and context.step % every == 0) or context.plan.stage_ending_at(context.step) is not None:
            self._log(context)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Log the rest of a stage that ended early, so that no line covers two stages.

        Where it ends with weights of an earlier step, its row in TensorBoard's table has their held-out losses.
        """
        context = RunContext.of(trainer)
        if self._supervised_A.any() and self._added == context.step:
            self._log(context)
        kept = kept_losses(context.folder).get(stage.end_step, {}) if trainer.is_global_zero else {}
        for logger in trainer.loggers if kept else ():
            if isinstance(logger, StageResults):
                logger.log_metrics({f"val/loss/{name}": loss for name, loss in kept.items()}, stage.end_step)

    def _log(self, context: RunContext) -> None:
        metrics = self._metrics(context, self._total(context.trainer))
        context.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        context.log(metrics)
        self._nll_A.zero_()
        self._supervised_A[:] = 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the sums since the last log line, so that a resumed run logs the same as an uninterrupted one."""
        names = RunContext.of(trainer).plan.abilities
        sums = zip(names, self._total(trainer), self._supervised_A.tolist(), strict=False)  # none before training
        checkpoint[_SUMS] = {name: [nll, float(count)] for name, nll, count in sums if count}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the sums."""
        self._resumed = checkpoint.get(_SUMS, {})

    def _total(self, trainer: Trainer) -> list[float]:
        """Return the negative log likelihoods of all ranks by ability."""
        if trainer.world_size == 1:
            return list(self._nll_A.tolist())
        total_A: Any = trainer.strategy.reduce(self._nll_A.clone(), reduce_op="sum")
        return list(total_A.tolist())

    def _metrics(self, context: RunContext, nll_A: list[float]) -> dict[str, float]:
        plan, step, module, now = context.plan, context.step, context.module, time.perf_counter()
        supervised_A, stage = self._supervised_A, context.stage
        trained_A, examples_A = plan.supervised_A(stage.first_step, step), plan.examples_A(0, step)
        metrics = {
            "train/loss": sum(nll_A) / max(1, int(supervised_A.sum())),
            # The optimizer already holds the next step's.
            "train/learning_rate": module.learning_rate_at(step - 1),
            "train/gradient_norm": float(context.trainer.callback_metrics.get("train/gradient_norm", math.nan)),
            "stage/index": float(plan.stages.index(stage)),
            "perf/tokens_per_second": plan.num_tokens(self._seen[0], step) / max(1e-9, now - self._seen[1]),
            "perf/seconds_per_step": (now - self._seen[1]) / max(1, step - self._seen[0]),
            "perf/memory_gib": _peak_memory_gib(context.trainer.strategy.root_device),
            "perf/packing_fill": plan.fill(stage.first_step, step),
        }
        for number, name in enumerate(plan.abilities):
            if supervised_A[number]:
                metrics[f"train/loss/{name}"] = nll_A[number] / int(supervised_A[number])
            metrics[f"data/share/{name}"] = trained_A[number] / max(1, int(trained_A.sum()))
            metrics[f"data/examples_seen/{name}"] = float(examples_A[number])
        self._seen = (step, now)
        return metrics


def _peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Add a Markdown text to TensorBoard if the run has it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_text(tag, text, step)
