"""``evaluate``: score a run, a stage, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.commands.options import CommandParser, dotted, names, wants_help, whole_number
from sftlab.screen import screen, tell_progress

if TYPE_CHECKING:
    from sftlab.results.score import ScoreRow

PARSER = CommandParser(
    "evaluate",
    "Scores a run, a stage, a checkpoint or a Hugging Face folder.",
    notes="""
Tasks: gsm8k, humaneval, mbpp, mt_bench, likelihood, lab_math, lab_code, lab_general. An option of a task is written
--NAME.OPTION VALUE: --gsm8k.path FILE, --gsm8k.num_problems 200, --lab_math.num_problems 50.

Writes answers, one line per verdict and scores.jsonl; a killed call goes on where it was.
""",
)
PARSER.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="a run folder (its last stage), an exported stage, a .ckpt file or folder inside a run, or any Hugging Face "
    "folder or id",
)
PARSER.add_argument(
    "--server",
    default="",
    metavar="URL",
    help="answer through an OpenAI-compatible server instead; --checkpoint then names its model",
)
PARSER.add_argument("--tasks", type=names, required=True, metavar="A,B", help="what is asked")
PARSER.add_argument("--to", default="", metavar="FOLDER", help="where results go (evaluations/<checkpoint's name>)")
PARSER.add_argument("--batch_size", type=whole_number(), default=64, metavar="64", help="prompts decoded side by side")


def main(arguments: list[str]) -> int:
    """Evaluate and print the scores."""
    if wants_help(arguments, PARSER):
        return 0
    options, rest = PARSER.parse_known_args(arguments)
    if not options.tasks:
        raise ValueError("--tasks: name one; see evaluate --help")
    checkpoint, server, batch_size = options.checkpoint, options.server, options.batch_size
    folder = Path(options.to or Path("evaluations") / Path(checkpoint.rstrip("/")).name)
    tasks: dict[str, dict[str, Any]] = {name: {} for name in options.tasks}
    for key, value in dotted(rest).items():
        name, _, option = key.partition(".")
        if name not in tasks or not option:
            PARSER.refuse([f"--{key}"])
        tasks[name][option] = _value(value)
    _evaluate(checkpoint, server, tasks, folder, batch_size)
    return 0


def _evaluate(checkpoint: str, server: str, tasks: dict[str, dict], folder: Path, batch_size: int) -> None:
    from rich.table import Table

    from sftlab.evaluate.run import run_task, save_scores, score_rows
    from sftlab.results.verdict import missing_lines
    from sftlab.tasks.likelihood import Likelihood
    from sftlab.tasks.registry import build_task

    likelihood = [Likelihood(**tasks.pop("likelihood"))] if "likelihood" in tasks else []
    built = [build_task(name, options) for name, options in tasks.items()]
    table = Table(title=f"Scores of {checkpoint}", title_justify="left")
    for column in ("task", "metric", "problems", "score", "95 % interval", "missing"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    missing: list[str] = []
    with ExitStack() as stack:
        backend, about = _backend(checkpoint, server, batch_size, stack)
        for task in built:
            rows, verdicts, _ = run_task(task, backend, folder, about, _tell(task.name))
            _add_rows(table, rows)
            missing += missing_lines(task.name, verdicts)
        for held_out in likelihood:
            rows = score_rows(held_out.scores(backend), None, about)
            save_scores(folder, rows)
            _add_rows(table, rows)
    console = screen()
    console.print(table)
    for line in missing:
        console.print(line)
    console.print(f"Results in {folder}")


def _add_rows(table: Any, rows: Sequence[ScoreRow]) -> None:
    for row in rows:
        score = row.score()
        interval = f"{score.low:.3f} to {score.high:.3f}"
        cells = (f"{score.num_problems:,}", f"{score.value:.4f}", interval, str(score.num_missing))
        cells = cells if score.num_problems else ("0", "not measured", "", str(score.num_missing))
        table.add_row(score.task, score.metric, *cells)


def _tell(name: str) -> Any:
    return partial(tell_progress, f"{name}, answers")


def _backend(checkpoint: str, server: str, batch_size: int, stack: ExitStack) -> tuple[Any, dict[str, object]]:
    if server:
        from sftlab.evaluate.server import ServerModel

        return ServerModel.at(server, checkpoint), {"checkpoint": checkpoint, "server": server}
    from transformers.utils import logging

    from sftlab.commands.export import model_folder
    from sftlab.evaluate.local import LocalModel

    logging.disable_progress_bar()
    path = Path(checkpoint)
    if not path.exists():
        return LocalModel.from_folder(checkpoint, batch_size), {"checkpoint": checkpoint}
    folder = model_folder(path, stack)
    about: dict[str, object] = {"checkpoint": checkpoint}
    about["weights"] = _stamp(folder if folder.is_relative_to(path) else path)
    return LocalModel.from_folder(folder, batch_size), about


def _stamp(path: Path) -> str:
    """Sizes and times of a checkpoint's files, hashed: answers of other weights at the same path are not reused."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
