"""``evaluate``: score a run, a stage, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from sftlab.class_help import help_of, summary, wrapped_row
from sftlab.commands.options import CommandParser, dotted, names, wants_help, whole_number
from sftlab.evaluate.backend import Backend
from sftlab.evaluate.folder import default_folder, require_own, weights_hash
from sftlab.evaluate.run import cut_lines, run_task
from sftlab.evaluate.server import ServerModel
from sftlab.results.score import ScoreRow
from sftlab.results.verdict import missing_lines
from sftlab.run.results import path_named
from sftlab.screen import screen, show, tell_progress
from sftlab.tasks.registry import TASKS, build_task, find_task, option_names
from sftlab.tasks.task import Task

PARSER = CommandParser(
    "evaluate",
    "Scores a run, a stage, a checkpoint or a Hugging Face folder.",
    notes=f"""
Tasks: {", ".join(TASKS)}; or one of your own by its class path: my_tasks.Capitals.
An option of a task is written --NAME.OPTION VALUE: --gsm8k.path FILE, --humaneval.seconds 30, --capitals.path FILE.
--tasks.help lists the tasks, --tasks.help NAME the options of one.

Writes answers, one line per verdict and scores.jsonl; a killed call goes on where it was. A folder that holds results
of another model is never written to.
""",
)
PARSER.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="a run (its last stage), run/stage, an exported stage, a .ckpt file or folder inside a run, or any Hugging "
    "Face folder or id",
)
PARSER.add_argument(
    "--server",
    default="",
    metavar="URL",
    help="answer through an OpenAI-compatible server instead; --checkpoint then names its model",
)
PARSER.add_argument("--tasks", type=names, required=True, metavar="A,B", help="what is asked")
PARSER.add_argument("--to", default="", metavar="FOLDER", help="where results go (evaluations/RUN-STAGE-HASH)")
PARSER.add_argument(
    "--system", default="", metavar="TEXT", help="a system prompt for problems that have none, as the model was trained"
)
PARSER.add_argument("--batch_size", type=whole_number(), default=64, metavar="64", help="prompts decoded side by side")


def main(arguments: list[str]) -> int:
    """Evaluate and print the scores."""
    if wants_help(arguments, PARSER):
        return 0
    asked = dotted(arguments)
    if "tasks.help" in asked:
        show(_help_of_tasks(asked["tasks.help"]))
        return 0
    options, rest = PARSER.parse_known_args(arguments)
    if not options.tasks:
        raise ValueError("--tasks: name one; see evaluate --help")
    tasks = _tasks(options.tasks, dotted(rest))
    if not options.server:
        options.checkpoint = path_named(options.checkpoint)
    with ExitStack() as stack:
        backend, about, model = _backend(options.checkpoint, options.server, options.batch_size, stack)
        folder = Path(options.to) if options.to else default_folder(options.checkpoint, model, about)
        require_own(folder, about)
        for task in tasks:
            task.problems()  # missing requirements of any task are reported before the first one is answered
        _evaluate(options.checkpoint, backend, tasks, folder, about, options.system)
    return 0


def _help_of_tasks(name: str) -> str:
    """The options of a task; all tasks if none is named."""
    if name:
        task, _ = find_task(name)
        return help_of(task, name)
    lines = ["Tasks (--tasks.help NAME lists the options of one):"]
    return "\n".join(lines + [wrapped_row(f"  {name}", summary(task)) for name, (task, _) in TASKS.items()])


def _tasks(chosen: Sequence[str], given: dict[str, str]) -> list[Task]:
    """Create the tasks, each with the options that follow one of its names."""
    options: dict[str, dict[str, str]] = {name: {} for name in dict.fromkeys(chosen)}
    names = {prefix: name for name in options for prefix in option_names(name)}
    for key, value in given.items():
        prefix = max((p for p in names if key.startswith(f"{p}.")), key=len, default="")
        if not prefix:
            PARSER.refuse([f"--{key}"])
        options[names[prefix]][key[len(prefix) + 1 :]] = value
    tasks = [build_task(name, mine) for name, mine in options.items()]
    if twice := [task.name for i, task in enumerate(tasks) if task.name in [other.name for other in tasks[:i]]]:
        raise ValueError(f"--tasks: two of them are named {twice[0]!r}; evaluate them by two calls, or rename one")
    return tasks


def _evaluate(
    checkpoint: str, backend: Backend, tasks: list[Task], folder: Path, about: dict[str, Any], system: str
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"Scores of {checkpoint}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("problems", "score", "95 % interval", "missing"):
        table.add_column(column, justify="right", no_wrap=True)
    missing: list[str] = []
    for task in tasks:
        tell = partial(tell_progress, f"{task.name}, answers")
        rows, verdicts, answers = run_task(task, backend, folder, about, tell, system)
        _add_rows(table, rows)
        missing += [*_counted_line(rows), *cut_lines(task, answers), *missing_lines(task.name, verdicts)]
    console = screen()
    console.print(table)
    for line in missing:
        console.print(line)
    console.print(f"Results in {folder}")


def _counted_line(rows: Sequence[ScoreRow]) -> list[str]:
    """Say which of several rows is the score; empty if there is only one."""
    main = [row for row in rows if row.headline]
    if len(rows) < 2 or not main:
        return []
    return [f"The score of {main[0].task} is {main[0].metric}; the lines below it look at the same answers otherwise."]


def _add_rows(table: Any, rows: Sequence[ScoreRow]) -> None:
    """Add the score of a task and, dimmed below it, its other measures."""
    for row in rows:
        score = row.score()
        interval = f"{score.low:.3f} to {score.high:.3f}"
        cells = (f"{score.num_problems:,}", f"{score.value:.4f}", interval, str(score.num_missing))
        cells = cells if score.num_problems else ("0", "not measured", "", str(score.num_missing))
        table.add_row(score.task if row.headline else "", score.metric, *cells, style=None if row.headline else "dim")


def _backend(
    checkpoint: str, server: str, batch_size: int, stack: ExitStack
) -> tuple[Backend, dict[str, Any], Path | None]:
    """Return what answers, how results describe it, and its local Hugging Face folder if it has one."""
    if server:
        model = ServerModel.at(server, checkpoint)
        model.client.require()
        return model, {"checkpoint": checkpoint, "server": model.client.base_url}, None
    from transformers.utils import logging

    from sftlab.evaluate.local import LocalModel
    from sftlab.run.opening import model_folder

    logging.disable_progress_bar()
    path = Path(checkpoint)
    folder = model_folder(checkpoint, stack, show)
    local = LocalModel.from_folder(folder, batch_size)
    if not path.exists():
        return local, {"checkpoint": checkpoint, "weights": getattr(local.model.config, "_commit_hash", None)}, None
    return local, {"checkpoint": checkpoint, "weights": weights_hash(Path(folder))}, Path(folder)
