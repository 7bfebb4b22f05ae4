"""Results of a study as tidy tables: every score of every stage of every run, and what each run cost.

    results.jsonl   one line a score: study, run, config, seed, factors, stage, ability, task, metric, value, error, ...
    results.parquet the same; factors are columns of their own
    costs.jsonl     one line a run: its stages with tokens, seconds, and whether another run trained them

``results.jsonl`` is a function of the finished runs alone: a study that was killed and started again writes the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sftlab.files import read_jsonl, whole_file, write_text
from sftlab.results.score import ScoreRow
from sftlab.run.identity import reused_stages
from sftlab.run.opening import finished_stages
from sftlab.run.results import losses_by_stage
from sftlab.study.freed import FREED_FILE, stage_ends
from sftlab.study.graph import PlannedRun, StageNode
from sftlab.study.job import overhead_files
from sftlab.study.study import Study

HELD_OUT = "held_out"  # the task of held-out losses


def uncounted_runs(folder: Path, planned: Sequence[PlannedRun]) -> list[str]:
    """Return names of runs in a study's folder that have finished a stage but no longer belong to the study."""
    mine = {run.run.name for run in planned}
    others = sorted(path for path in folder.glob("runs/*") if path.is_dir() and path.name not in mine)
    return [path.name for path in others if finished_stages(path) or (path / FREED_FILE).is_file()]


def write_results(
    study: Study,
    planned: Sequence[PlannedRun],
    folder: Path,
    errors: Mapping[str, str],
    uncounted: Sequence[str] = (),
) -> None:
    """Write the tables from the runs' folders.

    Args:
        study: The study.
        planned: Its runs.
        folder: Where to write ``study.json``, ``results.jsonl``, ``results.parquet`` and ``costs.jsonl``.
        errors: The errors of failed runs.
        uncounted: Finished runs in the folder that do not belong to the study; the report names them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for run in planned for row in _result_rows(study, run, folder)]
    write_text(folder / "study.json", json.dumps(study.to_dict() | {"uncounted": list(uncounted)}, indent=1))
    write_text(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    costs = [_cost_row(run, errors.get(run.run.name)) for run in planned]
    write_text(folder / "costs.jsonl", "".join(json.dumps(row) + "\n" for row in costs))
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    columns.pop("factors", None)
    columns.update({name: [row["factors"].get(name) for row in rows] for name in study.factors})
    with whole_file(folder / "results.parquet") as partial:
        pq.write_table(pa.table(columns), partial)


def _result_rows(study: Study, run: PlannedRun, folder: Path) -> Iterator[dict[str, Any]]:
    """Return the scores and held-out losses of a run's finished stages, and the scores taken inside stages."""
    text = json.dumps(run.run.config, sort_keys=True, default=str)
    common = {
        "study": study.name,
        "run": run.run.name,
        "config": run.run.config_name,
        "seed": run.run.seed,
        "factors": run.run.factors,
        "config_hash": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    }
    stages = {stage.name: i for i, stage in enumerate(run.stages[: run.num_done()])}
    for row in [*_scores(run, folder), *_losses(run)]:
        if row["stage"] in stages:
            about = {"stage_index": stages[row["stage"]], "last_stage": row["stage"] == run.stages[-1].name}
            yield {**common, **about, "full": row["ability"] in run.full[row["stage"]], **row}


def _scores(run: PlannedRun, folder: Path) -> Iterator[dict[str, Any]]:
    path = run.folder / "scores.jsonl"
    for number, line in enumerate(read_jsonl(path), 1):
        row = ScoreRow.from_dict(line, f"{path}, line {number}")
        place = f"step={row.step:06d}-{str(row.stage).replace(' ', '-')}"
        answers = run.folder / "answers" / place / f"{row.task}.problems.jsonl"
        yield row.to_dict() | {"problems": str(answers.relative_to(folder)) if answers.is_file() else None}


def _losses(run: PlannedRun) -> Iterator[dict[str, Any]]:
    ends = stage_ends(run.folder, run.stages)
    losses = losses_by_stage(run.folder, {step: name for name, step in ends.items()})
    for stage, by_ability in losses.items():
        for ability, value in by_ability.items():
            about: dict[str, Any] = {"stage": stage, "step": ends[stage], "ability": ability}
            row = ScoreRow(task=HELD_OUT, metric="loss", value=value, headline=True, best=None, **about)
            yield row.to_dict() | {"problems": None}


def _cost_row(run: PlannedRun, error: str | None) -> dict[str, Any]:
    done = run.num_done()
    status = "done" if done == len(run.stages) else "failed" if error else "missing"
    seconds, ends, trained = stage_seconds(run), stage_ends(run.folder, run.stages), _trained(run)
    reused = {stage["stage"] for stage in reused_stages(run.folder)}
    stages = [
        {
            "name": stage.name,
            "key": stage.key,
            "tokens": trained.get(stage.name, stage).tokens,
            "supervised_tokens": trained.get(stage.name, stage).supervised_tokens,
            "seconds": seconds.get(ends.get(stage.name, stage.end_step)),
            "reused": stage.name in reused,
        }
        for stage in run.stages[:done]
    ]
    about = {"run": run.run.name, "config": run.run.config_name, "seed": run.run.seed, "factors": run.run.factors}
    return {**about, "status": status, "stages": stages, "error": error}


class _Trained(NamedTuple):
    tokens: int
    supervised_tokens: int


def _trained(run: PlannedRun) -> dict[str, _Trained]:
    """Return what each stage really trained, by name, if the run has a ledger: a stage may have ended early."""
    path = run.folder / "ledger.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    found: dict[str, _Trained] = {}
    for row in rows:
        before = found.get(row["stage"], _Trained(0, 0))
        found[row["stage"]] = _Trained(
            before.tokens + row["tokens"], before.supervised_tokens + row["supervised_tokens"]
        )
    return found


def stage_seconds(run: PlannedRun) -> dict[int, float]:
    """Return the seconds that each stage took, by its last step."""
    lines = read_jsonl(run.folder / "metrics.jsonl")
    return {line["step"]: line["stage/seconds"] for line in lines if "stage/seconds" in line}


def tokens_per_second(planned: Sequence[PlannedRun]) -> float:
    """Return the speed of the stages trained so far, validation and scores included; nan before the first."""
    tokens = seconds = 0.0
    for run in planned:
        reused, took = {stage["stage"] for stage in reused_stages(run.folder)}, stage_seconds(run)
        ends, trained = stage_ends(run.folder, run.stages), _trained(run)
        for stage in run.stages[: run.num_done()]:
            end = ends.get(stage.name, stage.end_step)
            if stage.name not in reused and end in took:
                tokens, seconds = tokens + trained.get(stage.name, stage).tokens, seconds + took[end]
    return tokens / seconds if seconds else math.nan


def overhead_seconds(folder: Path) -> float:
    """Return the median seconds that a finished job took outside its stages; 0 before the first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in overhead_files(folder)]
    return float(median(one["seconds"] for one in found)) if found else 0.0


def tokens_of(stages: Sequence[StageNode]) -> int:
    """Count the tokens that stages train."""
    return sum(stage.tokens for stage in stages)
