"""``runs``: list the runs of a folder: state, scores, age and size."""

from __future__ import annotations

import time
from pathlib import Path

from sftlab.commands.options import CommandParser
from sftlab.run.folder import LOGS, STATE_FILE, RunState, state_of
from sftlab.screen import screen, show

PARSER = CommandParser(
    "runs",
    "Lists runs: name, state (with steps done), stage, scores after the last stage or held-out losses, age and size.",
)
PARSER.add_argument(
    "folder", nargs="?", default=str(LOGS), metavar="FOLDER", help="lightning_logs, or one study in it (lightning_logs)"
)


def main(arguments: list[str]) -> int:
    """Print the table."""
    if {"-h", "--help"} & set(arguments):
        PARSER.print_help()
        return 0
    folder = Path(PARSER.parse(arguments).folder)
    if not folder.is_dir() and (LOGS / folder).is_dir():
        folder = LOGS / folder
    from sftlab.run.results import runs_in

    if not folder.is_dir():
        raise ValueError(f"runs: there is no folder {folder}")
    runs = runs_in(folder / "runs" if (folder / "runs").is_dir() else folder)
    if not runs:
        show(f"No runs in {folder}.")
        return 0
    _print(folder, runs)
    return 0


def _print(folder: Path, runs: list[Path]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("run", overflow="fold", min_width=18)
    table.add_column("state")
    for column in ("stage", "score or loss"):
        table.add_column(column, overflow="fold")
    for column in ("age", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(*map(Text, _cells(folder, run)))
    screen().print(table)


def _cells(folder: Path, run: Path) -> tuple[str, ...]:
    from sftlab.run.opening import finished_stages
    from sftlab.run.results import size_of, stage_name

    stages = finished_stages(run)
    mark = run / STATE_FILE if (run / STATE_FILE).is_file() else run
    return (
        str(run.relative_to(folder)).replace("/runs/", "/").removeprefix("runs/"),
        _state_words(run, state_of(run)),
        stage_name(stages[-1]) if stages else "-",
        _result_words(run),
        age_words(time.time() - mark.stat().st_mtime),
        size_words(size_of(run)),
    )


def _state_words(run: Path, state: RunState) -> str:
    """Return "finished", or how far the run got."""
    from sftlab.run.results import last_step

    if state.status in ("finished", "unknown"):
        return state.status
    try:
        step = max(last_step(run), state.step)
    except ValueError:  # reported with the losses
        step = state.step
    return f"{state.status} {step:,}" + (f"/{state.num_steps:,}" if state.num_steps else "")


def _result_words(run: Path) -> str:
    from sftlab.report.text import number
    from sftlab.run.results import last_scores, losses_by_stage

    try:
        scores = last_scores(run)
        if scores:
            return " ".join(f"{row.ability or row.task} {number(row.score().value, row.best)}" for row in scores)
        losses = list(losses_by_stage(run).values())
    except ValueError as error:
        return str(error)
    return " ".join(f"{ability} {loss:.3f}" for ability, loss in losses[-1].items()) if losses else "-"


def age_words(seconds: float) -> str:
    """Format an age in the largest unit that fits."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def size_words(num_bytes: int) -> str:
    """Format bytes in the largest unit that fits."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
