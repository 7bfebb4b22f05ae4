"""A study on the screen: its plan before it runs, and each job's start and end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sftlab.report.text import duration
from sftlab.study.graph import Job, PlannedRun
from sftlab.study.job import Outcome
from sftlab.study.results import overhead_seconds, tokens_of, tokens_per_second
from sftlab.study.study import Study


def overview(
    study: Study, planned: Sequence[PlannedRun], jobs: Sequence[Job], num_workers: int, hides_finished: bool = False
) -> RenderableType:
    """Return runs and stages as a table, with what is shared and done, and what is left to train.

    Args:
        study: The study.
        planned: Its runs.
        jobs: The remaining jobs.
        num_workers: Number of jobs that run at once.
        hides_finished: Whether to leave out rows of finished runs; they are still counted.
    """
    table = Table(title=f"{study.name}: {len(planned)} runs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold", min_width=16)
    table.add_column("stages: + to train, = another run's, \u2713 done", overflow="fold", min_width=16)
    unit = _unit(planned)
    table.add_column(unit, justify="right", no_wrap=True)
    table.add_column("to train", justify="right", no_wrap=True)
    left = _tokens_left(planned, jobs)
    trained_here = {(job.run, stage.name) for job in jobs for stage in job.stages[job.num_shared :]}
    for run in planned:
        done = run.num_done()
        if hides_finished and done == len(run.stages):
            continue
        marks = [
            f"{'✓' if i < done else '+' if _is_left(run, i, jobs, trained_here) else '='} {stage.name}"
            for i, stage in enumerate(run.stages)
        ]
        mine = left.get(run.run.name, 0)
        table.add_row(run.run.name, "   ".join(marks), f"{tokens_of(run.stages):,}", f"{mine:,}" if mine else "-")
    num_starts = sum(job.tokens > 0 for job in jobs)
    return Group(table, *(Text(line) for line in _summary(planned, left, num_starts, num_workers)))


def _is_left(run: PlannedRun, index: int, jobs: Sequence[Job], trained: set[tuple[str, str]]) -> bool:
    shared = max((job.num_shared for job in jobs if job.run == run.run.name), default=0)
    return index >= shared and (run.run.name, run.stages[index].name) in trained


def _tokens_left(planned: Sequence[PlannedRun], jobs: Sequence[Job]) -> dict[str, int]:
    left = {}
    for run in planned:
        shared = max((job.num_shared for job in jobs if job.run == run.run.name), default=0)
        left[run.run.name] = tokens_of(run.stages[max(shared, run.num_done()) :])
    return left


def _summary(planned: Sequence[PlannedRun], left: dict[str, int], num_starts: int, num_workers: int) -> list[str]:
    unit = _unit(planned)
    everything = sum(tokens_of(run.stages) for run in planned)
    distinct = {stage.key: stage.tokens for run in planned for stage in run.stages}
    once, rest = sum(distinct.values()), sum(left.values())
    finished = sum(run.num_done() == len(run.stages) for run in planned)
    lines = [
        *([f"{finished:,} of {len(planned):,} runs are finished and not trained again."] if finished else []),
        f"{everything:,} {unit} if every run trained all of its stages; {once:,} with each distinct stage trained once "
        f"({once / max(1, everything):.2f} of it, {everything - once:,} saved).",
        f"{rest:,} {unit} are left to train.",
    ]
    speed = tokens_per_second(planned)
    if rest and math.isnan(speed):
        lines.append("How long it takes is known once the first stage has run.")
    elif rest:
        start = overhead_seconds(_folder(planned))
        takes = duration((rest / speed + num_starts * start) / num_workers)
        starts = f", and {num_starts:,} starts of a process of {duration(start)} each" if start else ""
        lines.append(f"About {takes}: {speed:,.0f} tokens/s with validation and scores{starts}.")
    return lines


def _folder(planned: Sequence[PlannedRun]) -> Path:
    """Return the study's folder."""
    return planned[0].folder.parents[1]


def _unit(planned: Sequence[PlannedRun]) -> str:
    """Return what the sizes count: examples if a config only declares counts."""
    return "examples" if any(run.declared for run in planned) else "tokens"


def uncounted_words(folder: Path, names: Sequence[str], most: int = 6) -> list[str]:
    """Report finished runs in the folder that the study file no longer has; empty if there are none."""
    if not names:
        return []
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    which = f"{', '.join(names[:most])}{more}"
    return [
        f"Not counted: {len(names):,} finished run{'s' * (len(names) != 1)} in {folder / 'runs'} that the study does "
        f"not name: {which}. Give their seeds, values or names back, and they count again without training."
    ]


class Teller:
    """Prints a line when a job starts and ends, with what is left.

    Args:
        console: The console.
        planned: The runs of the study.
        jobs: The jobs to carry out.
    """

    def __init__(self, console: Console, planned: Sequence[PlannedRun], jobs: Sequence[Job]) -> None:
        self.console, self.planned, self.total = console, planned, len(jobs)
        self.ended, self.start = 0, time.perf_counter()
        self._left, self._done = list(jobs), list[Job]()

    def __call__(self, job: Job, outcome: Outcome | None) -> None:
        """Report a start (no outcome) or an end."""
        if outcome is None:
            self.console.print(f"  start {job.name}: {job.tokens:,} tokens")
            return
        self.ended += 1
        self._left = [one for one in self._left if one.name != job.name]
        self._done += [] if outcome.error else [job]
        work = self._work(self._done)
        rest = (time.perf_counter() - self.start) * self._work(self._left) / work if work else math.nan
        word = "failed" if outcome.error else "done"
        ahead = "" if math.isnan(rest) or not self._left else f", about {duration(rest)} left"
        line = f"  {word}  {job.name} in {outcome.seconds:,.0f} s ({self.ended} of {self.total}{ahead})"
        self.console.print(line, style="red" if outcome.error else None)

    def _work(self, jobs: Sequence[Job]) -> float:
        """Return the seconds of successive processes; nan before a stage was trained."""
        overhead, speed = overhead_seconds(_folder(self.planned)), tokens_per_second(self.planned)
        return sum(overhead + job.tokens / speed for job in jobs if job.tokens)
