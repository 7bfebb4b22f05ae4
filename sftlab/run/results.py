"""The results in a run's folder: stages, scores, held-out losses, metrics, files of verdicts.

A run is named by its folder or by its name in lightning_logs/; a stage as ``run/general`` or by its exported folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftlab.evaluate.folder import weights_hash
from sftlab.evaluate.run import read_scores
from sftlab.files import read_jsonl
from sftlab.nearest import did_you_mean
from sftlab.results.score import ScoreRow
from sftlab.run.folder import LOGS, state_of
from sftlab.run.opening import finished_stages, is_checkpoint, model_folder

VERDICTS = ".problems.jsonl"
KEPT_FILE = "kept.jsonl"  # in a run's folder: with keep_best, a line for each stage
_VAL = "val/loss/"


@dataclass(frozen=True)
class RunStage:
    """A stage of a run, or the run's last stage.

    Attributes:
        run: The run's folder.
        stage: The stage's name; empty if none was given.
    """

    run: Path
    stage: str = ""

    def __str__(self) -> str:
        """Return the name that users give it."""
        name = self.run.relative_to(LOGS) if self.run.is_relative_to(LOGS) else self.run
        return f"{name}/{self.stage}" if self.stage else str(name)

    @property
    def export(self) -> Path:
        """Return the exported model of the stage, by default of the last one.

        Raises:
            ValueError: There is none yet.
        """
        stages = finished_stages(self.run)
        mine = [path for path in stages if self.stage in ("", stage_name(path))]
        if not mine:
            have = ", ".join(map(stage_name, stages)) or "none"
            which = f" {self.stage}" if self.stage else ""
            raise ValueError(f"{self.run} has finished no stage{which}; it has {have}")
        return mine[-1]

    def verdicts(self) -> dict[str, dict[str, Path]]:
        """Return files of verdicts by task, then by origin: evaluate, or scores of the run itself."""
        stages = [stage_name(path) for path in finished_stages(self.run)]
        stage = self.stage or (stages[-1] if stages else "")
        found: dict[str, dict[str, Path]] = {}
        own = re.compile(rf"step=\d+-{re.escape(stage.replace(' ', '-'))}")  # not that of a stage whose name ends so
        for folder in sorted(self.run.glob("answers/step=*")):
            if own.fullmatch(folder.name):
                for path in sorted(folder.glob(f"*{VERDICTS}")):
                    found.setdefault(path.name.removesuffix(VERDICTS), {})["run"] = path
        for folder in self._evaluations(stage):
            for path in sorted(folder.glob(f"*{VERDICTS}")):
                found.setdefault(path.name.removesuffix(VERDICTS), {})["evaluate"] = path
        return found

    def _evaluations(self, stage: str) -> list[Path]:
        """Return the folders that evaluate has named after the stage, the one of its present weights last.

        A run that was trained anew under its name leaves those of its earlier weights behind.
        """
        below = self.run.relative_to(LOGS) if self.run.is_relative_to(LOGS) else Path(self.run.name)
        run, mine = (_as_evaluate_writes(name) for name in ("-".join(below.parts), stage))
        start = re.compile(rf"{re.escape(run)}-\d+-{re.escape(mine)}-([0-9a-f]+)")
        places = sorted(Path("evaluations").iterdir()) if Path("evaluations").is_dir() else []
        found = {place: match[1] for place in places if (match := start.fullmatch(place.name))}
        export = next((path for path in finished_stages(self.run) if stage_name(path) == stage), None)
        present = weights_hash(export) if len(found) > 1 and export is not None else ""
        return sorted(found, key=lambda place: (present.startswith(found[place]), place.stat().st_mtime))


def _as_evaluate_writes(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._=+-" else "-" for c in name)


def stage_name(export: Path) -> str:
    """Return the stage of an exported folder: ``1-general`` is general."""
    return export.name.partition("-")[2]


def find_stage(name: str) -> RunStage:
    """Return the run, and its stage, that a name means.

    Raises:
        ValueError: There is no such run or stage; the message lists those that exist.
    """
    path = Path(name)
    for place in (path, LOGS / path):
        if is_run(place):
            return RunStage(place)
        if place.parent.name == "stages" and place.is_dir() and is_run(place.parents[1]):
            return RunStage(place.parents[1], stage_name(place))
        if is_run(place.parent):
            stages = {stage_name(export): export.name for export in finished_stages(place.parent)}
            asked = next((stage for stage, export in stages.items() if place.name in (stage, export)), None)
            if asked is None:
                have = ", ".join(stages) or "none"
                raise ValueError(f"{place.parent} has no finished stage {place.name}; it has {have}")
            return RunStage(place.parent, asked)
    known = [str(RunStage(run)) for run in runs_in(LOGS)]
    hint = did_you_mean(name, known, f"there are {', '.join(known[:12])}" if known else "there are none")
    raise ValueError(f"{name}: no run or stage of that name in {LOGS}/; {hint}")


def path_named(name: str) -> str:
    """Return the folder of a run or stage named as in ``runs``; a path, a model or an unknown name stays unchanged.

    Raises:
        ValueError: The run has no such stage.
    """
    if Path(name).exists() or not any(is_run(LOGS / place) for place in (Path(name), Path(name).parent)):
        return name
    found = find_stage(name)
    return str(found.export if found.stage else found.run)


def model_named(name: str, stack: ExitStack, tell: Callable[[str], None] | None = None) -> str:
    """Return the Hugging Face folder, or the hub id, that a name means: of a run, a stage, a checkpoint, any model.

    Args:
        name: The user's name for it; runs and stages are also looked for in lightning_logs/.
        stack: Owns the folder that a checkpoint is exported to.
        tell: Called with what was chosen if the name is ambiguous.

    Raises:
        ValueError: It is none of these.
    """
    path = Path(name)
    if (path / "config.json").is_file() or is_checkpoint(path):
        return model_folder(name, stack, tell)
    try:
        found = find_stage(name)
    except ValueError:
        if path.exists() or (LOGS / path.parts[0]).exists() or path.name == name:
            raise
        return model_folder(name, stack, tell)
    return str(found.export) if found.stage else model_folder(found.run, stack, tell)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's."""
    return (folder / "state.json").is_file() or (folder / "metrics.jsonl").is_file()


def runs_in(folder: Path) -> list[Path]:
    """Return the runs in a folder, including those of its studies, in the order of their last starts."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and is_run(path):
            found.append(path)
        elif (path / "runs").is_dir():
            found += runs_in(path / "runs")
    return sorted(found, key=lambda run: (str(run.parent), state_of(run).turn))


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """Yield the lines of a run's metrics.jsonl: ``step``, which may be null, and numbers; NaN if not finite.

    Raises:
        ValueError: A line holds something else; the message says which.
    """
    path = run / "metrics.jsonl"
    lines = read_jsonl(path)
    for number, line in enumerate(lines, 1):
        line.setdefault("step", None)
        wrong = [tag for tag, value in line.items() if not (value is None or _is_number(value, tag == "step"))]
        if wrong:
            raise ValueError(f"{path}, line {number}: {wrong[0]!r} is not a number; the file is damaged, restore it")
        line |= {tag: float("nan") for tag, value in line.items() if value is None and tag != "step"}
    return lines


def _is_number(value: Any, is_whole: bool) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) and not is_whole


def stage_ends(run: Path) -> dict[int, str]:
    """Return the last optimizer step of each finished stage, with its name."""
    steps = [line["step"] or 0 for line in metric_lines(run) if "stage/seconds" in line]
    return dict(zip(sorted(set(steps)), map(stage_name, finished_stages(run)), strict=False))


def losses_by_stage(run: Path, ends: dict[int, str] | None = None) -> dict[str, dict[str, float]]:
    """Return the loss on held-out examples after each stage, by ability, of the weights that it ends with."""
    ends = stage_ends(run) if ends is None else ends
    found: dict[str, dict[str, float]] = {}
    for line in metric_lines(run):
        losses = {tag.removeprefix(_VAL): value for tag, value in line.items() if tag.startswith(_VAL)}
        if losses and line["step"] in ends:
            found.setdefault(ends[line["step"]], {}).update(losses)
    for step, losses in kept_losses(run).items():
        if ends.get(step) in found:
            found[ends[step]].update(losses)
    return found


def kept_losses(run: Path) -> dict[int, dict[str, float]]:
    """Return the held-out losses of the weights that ``keep_best`` chose, by the last step of their stage."""
    return {line["end_step"]: line["val_loss"] for line in read_jsonl(run / KEPT_FILE)}


def last_scores(run: Path) -> list[ScoreRow]:
    """Return the headline scores after the last scored stage."""
    rows = [row for row in read_scores(run / "scores.jsonl") if row.headline and not row.inside]
    return [row for row in rows if row.step == rows[-1].step]


def last_step(run: Path) -> int:
    """Return the last logged optimizer step."""
    return max((line["step"] or 0 for line in metric_lines(run)), default=0)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder; links are not followed, and a file with two names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(place, name))
            except OSError:  # removed meanwhile by the running run
                continue
            seen[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(seen.values())


def pairs_of_verdicts(a: RunStage, b: RunStage) -> list[tuple[Path, Path]]:
    """Return the files of two stages to compare: for each common task, from the same kind of evaluation.

    Raises:
        ValueError: They have no task in common.
    """
    first, second = a.verdicts(), b.verdicts()
    pairs = []
    for task in first:
        mine, theirs = first[task], second.get(task, {})
        kinds = [kind for kind in ("evaluate", "run") if kind in mine and kind in theirs]
        if kinds:
            pairs.append((mine[kinds[0]], theirs[kinds[0]]))
        elif theirs:
            pairs.append((next(iter(mine.values())), next(iter(theirs.values()))))
    if not pairs:
        has = [f"{stage} has {', '.join(found) or 'none'}" for stage, found in ((a, first), (b, second))]
        raise ValueError(
            f"compare: no task was answered by both; {'; '.join(has)}. Score each of them alike: "
            f"sftlab evaluate --checkpoint {a.run} --tasks ..."
        )
    return pairs
