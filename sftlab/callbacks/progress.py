"""Progress on the screen: the plan before training, a bar during training, the paths of the results at the end."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sftlab.callbacks.context import RunContext
from sftlab.callbacks.metrics import log_text
from sftlab.model.module import SFTModule
from sftlab.plan.plan import StagePlan
from sftlab.plan.table import plan_screen
from sftlab.run.results import losses_by_stage
from sftlab.screen import screen


class Bar(Progress):
    """Stage, steps and times in one line, and below it the numbers that would not fit beside them in 80 columns.

    Args:
        console: Where to.

    Attributes:
        numbers: Losses and speed.
    """

    def __init__(self, console: Console) -> None:
        self.numbers = ""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        super().__init__(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=4)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return both lines."""
        yield self.make_tasks_table(self.tasks)
        if self.numbers:
            yield Text(self.numbers)


class ScreenProgress(ProgressBar):
    """A bar over all stages with stage, loss, loss per ability and speed; plain lines without a terminal.

    Args:
        every_n_seconds: How often a line is printed where there is no terminal.
        show_bar: Show the progress of training, not only the plan before it and the results after it.
    """

    def __init__(self, every_n_seconds: float = 20.0, show_bar: bool = True) -> None:
        super().__init__()
        self.every_n_seconds, self.show_bar = every_n_seconds, show_bar
        self.console = screen()
        self._bar: Bar | None = None
        self._enabled = True
        self._last_line, self._first = 0.0, (0, 0.0)

    def disable(self) -> None:
        """Print nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def print(self, *args: Any, **_: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self.console.print(*args)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the screen before training; then the bar."""
        context = RunContext.of(trainer)
        plan, data = context.plan, context.data
        if not self._enabled:
            return
        self.print(Text(model_line(trainer, context.module), style="bold"))
        self.print(plan_screen(plan, data.audits(), data.audit_places(), data.notes(), context.module.normalise))
        if trainer.global_step:
            self.print(f"Resumed after step {trainer.global_step:,} of {plan.num_steps:,}.")
        self.print(f"Run folder: {context.folder}")
        recorder = screen(width=160, record=True, file=io.StringIO())
        recorder.print(plan_screen(plan, data.audits(), data.audit_places(), data.notes(), context.module.normalise))
        text = "\n".join("    " + line for line in recorder.export_text().splitlines())
        log_text(trainer, "plan", text, trainer.global_step)
        self._first = (trainer.global_step, time.perf_counter())
        if self.console.is_terminal and self.show_bar:
            self._bar = Bar(self.console)
            self._task = self._bar.add_task("", total=plan.num_steps, completed=trainer.global_step)
            self._bar.start()

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Name the stage that begins."""
        plan = RunContext.of(trainer).plan
        number = plan.stages.index(stage) + 1
        optimizer = "fresh" if stage.stage.fresh_optimizer else "carried"
        self.print(
            f"Stage {number} of {len(plan.stages)}, {stage.stage.name}: steps {stage.first_step + 1:,} to "
            f"{stage.end_step:,}, {optimizer} optimizer state"
        )
        if self._bar is not None:
            self._bar.numbers = ""
            self._bar.update(self._task, description=f"stage {stage.stage.name}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or print a line from time to time."""
        context = RunContext.of(trainer)
        if not self._enabled or not self.show_bar or not context.ends_step(batch_idx):
            return
        plan, step, numbers = context.plan, context.step, _numbers(context)
        if self._bar is not None:
            words = f"stage {context.stage.stage.name}"
            self._bar.numbers = numbers
            self._bar.update(self._task, completed=step, total=plan.num_steps, description=words)
        elif time.perf_counter() - self._last_line > self.every_n_seconds and step >= self._first[0] + 5:
            self._last_line = time.perf_counter()
            per_step = (self._last_line - self._first[1]) / (step - self._first[0])
            left = (plan.num_steps - step) * per_step
            where = [f"step {step:,}/{plan.num_steps:,}", context.stage.stage.name, numbers]
            self.print("  ".join([*filter(None, where), f"about {left:,.0f} s left"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the paths of the results, after all other callbacks have finished."""
        if stage != "fit" or not self._enabled or trainer.state.status == "interrupted":
            return
        context = RunContext.of(trainer)
        plan, folder = context.plan, context.folder
        if (losses := loss_table(context)) is not None:
            self.print(losses)
        if trainer.global_step >= plan.num_steps:
            last = sorted((folder / "stages").glob("[0-9]*"), key=lambda p: int(p.name.split("-")[0]))
            self.print(f"Model        {last[-1] if last else folder}")
        else:
            is_kept = any((folder / "checkpoints").glob("*.ckpt"))
            more = "--ckpt_path last resumes" if is_kept else "no checkpoint was written"
            self.print(f"Stopped after step {trainer.global_step:,} of {plan.num_steps:,}; {more}")
        if (folder / "checkpoints").is_dir():
            self.print(f"Checkpoints  {folder / 'checkpoints'}")
        files = [folder / name for name in ("metrics.jsonl", "ledger.json", "scores.jsonl")]
        results = [str(path) for path in files if path.is_file() and path.stat().st_size]
        if results:
            self.print(f"Results      {', '.join(results)}")
        if (folder / "exhibits").is_dir():
            self.print(f"Heat maps    {folder / 'exhibits'}")
        if any(folder.rglob("events.out.tfevents.*")):
            self.print(f"TensorBoard  tensorboard --logdir {folder}")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def loss_table(context: RunContext) -> RenderableType | None:
    """Return held-out losses, stages down, abilities across; None if tasks are scored or no examples are held out."""
    scores = context.folder / "scores.jsonl"
    ends = {stage.end_step: stage.stage.name for stage in context.plan.stages}
    losses = {} if scores.is_file() and scores.stat().st_size else losses_by_stage(context.folder, ends)
    if not losses:
        return None
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("after stage")
    abilities = list(dict.fromkeys(name for row in losses.values() for name in row))
    for ability in abilities:
        table.add_column(ability, justify="right")
    for stage, row in losses.items():
        table.add_row(Text(stage), *(f"{row[name]:.4f}" if row.get(name) is not None else "-" for name in abilities))
    return Group(Text("Loss on held-out examples after each stage"), table)


def say(trainer: Trainer, what: RenderableType) -> None:
    """Print above the bar, if there is one."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, ScreenProgress):
        bar.print(what)
    else:
        screen().print(what)


def model_line(trainer: Trainer, module: SFTModule) -> str:
    """Return model, size, device, threads, precision and attention in one line."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    size = sum(p.numel() for p in module.parameters()) / 1e6
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    part = f" ({trained:,.3g}M of them trained, {size - trained:,.3g}M frozen)" if trained < size else ""
    attention = module.backbone.config._attn_implementation
    model = module.path if module.path and module.config is None else "from scratch"
    threads = torch.get_num_threads()
    return (
        f"Model {model}: {size:,.1f}M parameters{part}; {trainer.world_size} x {name}, "
        f"{threads} thread{'s' * (threads != 1)}, {trainer.precision}, attention {attention}"
    )


def _numbers(context: RunContext) -> str:
    """Return losses and speed of the last log line; nothing before a stage's first log line."""
    metrics = context.trainer.callback_metrics
    if "train/loss" not in metrics or int(metrics["stage/index"]) != context.plan.stages.index(context.stage):
        return ""
    parts = [f"loss {metrics['train/loss']:.3f}"]
    parts += [f"{a} {metrics[t]:.3f}" for a in context.stage.selected if (t := f"train/loss/{a}") in metrics]
    return "  ".join([*parts, f"{metrics['perf/tokens_per_second']:,.0f} tok/s"])
