"""What a run tells about itself: ``metrics.jsonl``, and the training metrics of each optimizer step, by ability."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sftlab.data.ability import PlannedData
from sftlab.files import cut_jsonl
from sftlab.model.module import SFTModule
from sftlab.model.optim import learning_rate_at
from sftlab.plan.plan import Plan


class JsonlLogger(Logger):
    """Appends one JSON object per call to ``metrics.jsonl``; reports read this, never event files.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._path = Path(folder) / "metrics.jsonl"
        self._known: set[tuple[int | None, frozenset[str]]] = set()  # lines of the run that this one resumes

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self._path.parent.name

    @property
    def version(self) -> str:
        """One file per run, so there is no version."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is saved beside; nothing to do."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line, unless the run that this one resumes had written it."""
        if (step, frozenset(metrics)) in self._known:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = {"step": step, **{name: float(value) for name, value in metrics.items() if name != "epoch"}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run had logged and a resumed one will train again."""
        kept = cut_jsonl(self._path, step)
        self._known = {(line["step"], frozenset(line) - {"step"}) for line in kept}


class Metrics(Callback):
    """Logs each optimizer step's loss, by ability, with data seen and speed.

    ``train/loss`` is the mean over the step's supervised tokens, whatever the loss is normalised by; ``data/share``
    counts the supervised tokens trained so far in the stage; ``data/examples_seen`` counts the whole run;
    ``perf/tokens_per_second`` counts tokens of examples, not padding, over all ranks.

    Args:
        every_n_steps: Log every so many optimizer steps, and at stage ends.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._seen = (0, 0.0)  # tokens and time at the last log line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the sums that log lines are made of."""
        plan = self._plan(trainer)
        counts = plan.supervised_SA()
        self._supervised_SA, self._examples_SA = counts, plan.examples_SA().cumsum(0)
        example_E = plan.example_E
        ends_S = plan.row_starts_R1[plan.step_starts_S1]
        self._tokens_S1 = torch.from_numpy(plan.lengths_N[example_E]).cumsum(0)
        self._tokens_S1 = torch.cat([torch.zeros(1).long(), self._tokens_S1])[torch.from_numpy(ends_S)]
        self._seen = (int(self._tokens_S1[trainer.global_step]), time.perf_counter())
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.forget_after(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the last micro-batch of a step; empty the step's sums."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        module, plan, step = cast(SFTModule, pl_module), self._plan(trainer), trainer.global_step
        if step % self.every_n_steps == 0 or step in plan.boundaries:
            nll_A = module.step_nll_A
            if trainer.world_size > 1:
                nll_A = trainer.strategy.reduce(nll_A.clone(), reduce_op="sum")  # type: ignore[assignment]
            metrics = self._metrics(module, plan, step, nll_A.tolist())
            trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
        module.step_nll_A.zero_()

    def _metrics(self, module: SFTModule, plan: Plan, step: int, nll_A: list[float]) -> dict[str, float]:
        supervised_A = self._supervised_SA[step - 1]
        stage = plan.stages[plan.stage_index(step - 1)]
        trained_A = self._supervised_SA[stage.first_step : step].sum(0)
        tokens, now = int(self._tokens_S1[step]), time.perf_counter()
        metrics = {
            "train/loss": sum(nll_A) / max(1, int(supervised_A.sum())),
            # The optimizer already holds the next step's.
            "train/learning_rate": learning_rate_at(plan, step - 1, module.learning_rate, module.warmup_ratio),
            "stage/index": float(plan.stage_index(step - 1)),
            "perf/tokens_per_second": (tokens - self._seen[0]) / max(1e-9, now - self._seen[1]),
            "perf/packing_fill": plan.fill(stage.first_step, step),
        }
        for number, name in enumerate(plan.abilities):
            if supervised_A[number]:
                metrics[f"train/loss/{name}"] = nll_A[number] / int(supervised_A[number])
            metrics[f"data/share/{name}"] = trained_A[number] / max(1, int(trained_A.sum()))
            metrics[f"data/examples_seen/{name}"] = float(self._examples_SA[step - 1][number])
        self._seen = (tokens, now)
        return metrics

    @staticmethod
    def _plan(trainer: Trainer) -> Plan:
        plan = cast(PlannedData, cast(Any, trainer).datamodule).plan
        assert plan is not None
        return plan


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Add a Markdown text to TensorBoard, where a run has it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_text(tag, text, step)
