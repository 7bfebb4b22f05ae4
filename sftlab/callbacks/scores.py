"""Scores of every ability at each stage's end, and optionally before training and inside stages: R[stage, ability]."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.table import Table

from sftlab.bounds import within
from sftlab.callbacks.context import RunContext
from sftlab.callbacks.judging import Judging, Nobody, Place, owed_before
from sftlab.callbacks.measured import measured_table
from sftlab.callbacks.metrics import log_text
from sftlab.callbacks.progress import say
from sftlab.data.ability import PlannedData
from sftlab.data.source import LabSource
from sftlab.evaluate.engine import check_engine
from sftlab.evaluate.run import Graded, answer_task, cut_lines, read_scores, run_task
from sftlab.evaluate.spread import first_rank_asks, first_rank_works
from sftlab.files import checked_name, write_text
from sftlab.plan.ledger import trained_in_full
from sftlab.plan.plan import StagePlan
from sftlab.results.score import Score, ScoreRow
from sftlab.results.verdict import missing_lines
from sftlab.stats.forgetting import BEFORE, ScoreMatrix, forgetting, forward_transfer, gain, table_rows
from sftlab.tasks import registry  # noqa: F401 - so that configs find its tasks by class name
from sftlab.tasks.lab import MAX_PROBLEMS, LabTask
from sftlab.tasks.task import ModelTask, Task


class ScoreAbilities(Callback):
    """Scores each ability at the end of each stage: the exported model answers its problems, on all ranks.

    Args:
        tasks: The task of each ability to score: GSM8K, HumanEval, MBPP, MTBench, LabTask or your own. By default each
            ability with generated data has its lab task.
        num_problems: Number of problems of the default lab tasks.
        every_n_steps: Also score inside stages, every n optimizer steps.
        before: Also score before training, as the baseline of forward transfer and of the gain over the base.
        batch_size: Number of prompts that a rank decodes together.
        engine: A command that serves a stage to OpenAI-compatible clients and answers instead of the ranks, such as
            ``vllm serve {model} --port {port}``. It is started and stopped for each scoring.
        background: Grade answers while the next stage trains, for a slow judge. The run waits for the last stage's
            scores; a killed run that is resumed grades what is left.

    Raises:
        ValueError: A number is out of bounds, ``engine`` is not a command, or a task needs the model itself.
    """

    def __init__(
        self,
        tasks: dict[str, Task] | None = None,
        num_problems: int = 100,
        every_n_steps: int | None = None,
        before: bool = False,
        batch_size: int = 128,
        engine: str | None = None,
        background: bool = False,
    ) -> None:
        within("num_problems", num_problems, 1, MAX_PROBLEMS, is_whole=True)
        within("batch_size", batch_size, 1, 1_000_000, is_whole=True)
        if every_n_steps is not None:
            within("every_n_steps", every_n_steps, 1, is_whole=True)
        self.tasks, self.num_problems = tasks, num_problems
        of_name = Counter(task.name for task in (tasks or {}).values())
        for ability, task in (tasks or {}).items():
            if of_name[task.name] > 1:  # each task has files of its own
                task.name = f"{task.name}_{ability}"
        if engine is not None:
            check_engine(engine)
            for ability, task in (tasks or {}).items():
                if isinstance(task, ModelTask):
                    raise ValueError(f"tasks.{ability}: {task.name} looks into the model: no engine can answer")
        self.every_n_steps, self.before, self.batch_size = every_n_steps, before, batch_size
        self.engine, self.background = engine, background
        self._judging = Judging(Path())
        self._rows: list[ScoreRow] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the tasks have what they need before anything is trained.

        Raises:
            ValueError: A file, the sandbox for generated code, or the judge's key is missing.
        """
        if stage != "fit" or not trainer.is_global_zero:
            return
        for ability, task in (self.tasks or {}).items():
            try:
                checked_name("task", task.name)
                task.problems()
            except ValueError as error:
                raise ValueError(f"ScoreAbilities.tasks.{ability}: {error}") from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the scores of a resumed run up to its step, and grade the answers that it left ungraded."""
        context, step = RunContext.of(trainer), trainer.global_step
        rows = read_scores(context.folder / "scores.jsonl")
        self._rows = [row for row in rows if (row.step or 0) <= step] if step else []
        self._judging = Judging(context.folder)
        if trainer.is_global_zero:
            for place in owed_before(context.folder, step) if step else ():
                self._take_up(context, place)
            self._judging.note()
        with first_rank_works():
            self._take_graded(context, wait=not self.background)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score inside a stage, if requested."""
        context = RunContext.of(trainer)
        self._take_graded(context)
        if context.is_due_inside(batch_idx, self.every_n_steps):
            self._score_live(context, context.stage.stage.name, inside=True)

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Score the model before training, if requested."""
        if self.before and trainer.global_step == 0:
            self._score_live(RunContext.of(trainer), BEFORE, inside=False)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Score every ability that has a task."""
        context = RunContext.of(trainer)
        self._score(context, context.stage_folder(stage), stage.stage.name, inside=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for ungraded answers and print the table of scores."""
        with first_rank_works():
            self._take_graded(RunContext.of(trainer), wait=True)
        rows = [row for row in self._rows if not row.inside and row.headline and row.best is not None]
        if not trainer.is_global_zero or not rows:
            return
        context = RunContext.of(trainer)
        full = trained_in_full(context.plan)
        say(trainer, score_table(rows, full))
        if (beside := measured_table(context)) is not None:
            say(trainer, beside)
        _log_matrix(context, score_matrix(rows, full))

    def _score_live(self, context: RunContext, stage: str, inside: bool) -> None:
        """Score the model in training, from a temporary export."""
        folder = context.folder / "scoring"
        context.export(folder)
        self._score(context, folder, stage, inside)
        if context.trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)

    def _score(self, context: RunContext, model: Path, stage: str, inside: bool) -> None:
        """Let all ranks answer; rank 0 asks and grades. Scores are counted in steps of the whole run."""
        trainer = context.trainer
        device = str(trainer.strategy.root_device)
        with first_rank_asks(model, self.batch_size, device, self.engine or "") as backend:
            if backend is not None:
                for ability, task in self.tasks_of(context.data).items():
                    place = Place(context.step, stage, ability, inside)
                    if self.background and not isinstance(task, ModelTask):
                        self._judging.begin(place, answer_task(task, backend, **_how(context, place)).grade)
                    else:
                        self._take(context, place, run_task(task, backend, **_how(context, place)))
                self._write(context)
                is_last = context.plan.is_open or context.step >= context.plan.num_steps
                self._take_graded(context, wait=is_last and not inside)

    def _take_up(self, context: RunContext, place: Place) -> None:
        """Grade the answers that a killed run left; problems without an answer are not asked again."""
        task = self.tasks_of(context.data).get(place.ability)
        if task is None or isinstance(task, ModelTask):
            words = f"{place.ability} after step {place.step:,} was answered, and is asked nothing any more: no score"
            return say(context.trainer, f"ScoreAbilities: {words}")
        return self._judging.begin(place, answer_task(task, Nobody(), **_how(context, place)).grade)

    def _take_graded(self, context: RunContext, wait: bool = False) -> None:
        """Turn graded answers into scores: those ready by now, or all."""
        if wait and len(self._judging):
            say(context.trainer, f"Waiting for {len(self._judging)} score(s) that are being graded")
        for place, graded in self._judging.take(wait):
            self._take(context, place, graded)
            self._write(context)

    def _write(self, context: RunContext) -> None:
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in self._rows)
        write_text(context.folder / "scores.jsonl", lines)

    def _take(self, context: RunContext, place: Place, graded: Graded) -> None:
        """Save, log and show the scores of one place."""
        rows, verdicts, answers = graded
        trainer, ability, task = context.trainer, place.ability, self.tasks_of(context.data)[place.ability]
        # A run killed between these scores and its checkpoint has them already and measures again.
        known = (place.step, place.stage, ability)
        kept = [row for row in self._rows if (row.step, row.stage, row.ability) != known]
        self._rows = sorted(kept + rows, key=lambda row: row.step or 0)
        headline = rows[0].score()
        if headline.num_problems:
            context.log({f"score/{ability}/{task.name}": headline.value}, place.step)
        prompts = {problem.uid: problem.prompts for problem in task.problems()}
        reasons = {(verdict.uid, verdict.sample): verdict.reason for verdict in reversed(verdicts)}
        samples = [(prompts[a.uid], a.texts, reasons[a.uid, a.sample]) for a in answers[:3]]
        log_text(trainer, f"answers/{ability}", _as_markdown(samples), place.step)
        of = "" if place.step == context.step else f", {place.stage} after step {place.step:,}"
        troubles = [*cut_lines(task, answers), *missing_lines(task.name, verdicts)]
        say(trainer, "\n  ".join([f"  {ability}{of}: {_as_words(headline)}", *troubles]))

    def tasks_of(self, data: PlannedData) -> dict[str, Task]:
        """Return the task of each ability."""
        lab: dict[str, Task] = {}
        for name, ability in data.abilities.items():
            if isinstance(ability.source, LabSource):
                lab[name] = LabTask(name, self.num_problems, options=ability.source.options)
        return lab if self.tasks is None else self.tasks


def _how(context: RunContext, place: Place) -> dict[str, Any]:
    """Return where the answers of a place go, how its scores are labelled, and the system turn of its ability."""
    folder = context.folder / "answers" / f"step={place.step:06d}-{place.stage.replace(' ', '-')}"
    own = context.data.abilities.get(place.ability)
    return {"folder": folder, "about": asdict(place), "system": own.system if own is not None else ""}


def _log_matrix(context: RunContext, matrix: ScoreMatrix) -> None:
    """Log the metrics of the score matrix by ability, and the matrix itself as text."""
    measures = {"forgetting": forgetting, "forward_transfer": forward_transfer, "gain": gain}
    values = {f"{name}/{ability}": v for name, of in measures.items() for ability, v in of(matrix).items()}
    known = {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
    if known:
        context.log(known)
    header, *body = table_rows(matrix)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]
    log_text(context.trainer, "scores", "\n".join(lines), context.step)


def score_matrix(rows: Sequence[ScoreRow], full: Mapping[str, Sequence[str]]) -> ScoreMatrix:
    """Compute R[stage, ability] of the headline scores; ``full`` lists what each stage of the plan trained in full."""
    best = {str(row.ability): row.best for row in rows if row.best is not None}
    measured = {row.stage for row in rows}
    trained = {BEFORE: (), **full}
    values = [{"stage": row.stage, "ability": row.ability, "value": row.score().value} for row in rows]
    return ScoreMatrix.from_rows(values, {name: trained[name] for name in trained if name in measured}, best)


def score_table(rows: Sequence[ScoreRow], full: Mapping[str, Sequence[str]]) -> Table:
    """Format stages down, abilities across; each cell a score with its 95 % interval; below, what was forgotten."""
    matrix = score_matrix(rows, full)
    title = "Scores after each stage (95 % interval); * trained in full last"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("after stage")
    for ability in matrix.abilities:
        table.add_column(ability, justify="right")
    cells = {(row.stage, row.ability): row.score() for row in rows}
    for number, stage in enumerate(matrix.stages):
        words = []
        for ability in matrix.abilities:
            score = cells.get((stage, ability))
            star = "*" if matrix.anchor(ability) == number else ""
            words.append(_as_words(score) + star if score else "-")
        table.add_row(stage, *words, end_section=number == len(matrix.stages) - 1)
    for summary in table_rows(matrix)[len(matrix.stages) + 1 :]:
        table.add_row(*summary[:-1])
    return table


def _as_words(score: Score) -> str:
    if not score.num_problems:
        return "not measured"
    if score.high <= 1:
        return f"{score.value:.1%} ({score.low:.0%} to {score.high:.0%})"
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"


def _as_markdown(samples: list[tuple[tuple[str, ...], tuple[str, ...], str]]) -> str:
    parts = []
    for prompts, texts, reason in samples:
        lines = []
        for prompt, text in zip(prompts, texts, strict=False):  # an answer may stop before its last turn
            lines += ["**user**", textwrap.indent(prompt, "    "), "**model**", textwrap.indent(text, "    ")]
        parts.append("\n\n".join([*lines, f"*{reason}*"]))
    return "\n\n---\n\n".join(parts)
