"""The graph of a study: runs are chains of stages, equal stages are one node, and each node is trained once.

    run k=0     [specialised 3f..] --> [general a1..]         job 1: specialised, job 2: general of k=0
    run k=1/64  [specialised 3f..] --> [general b7..]         job 3: general of k=1/64, needs job 1
    run mixed   [specialised 3f..] --> [general a1..]         job 4: nothing to train, needs job 2

A job is a piece of one run that no other run branches from in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sftlab.config import set_key
from sftlab.files import checked_name, write_text
from sftlab.plan.ledger import ledger, trained_in_full
from sftlab.plan.plan import Plan
from sftlab.plan.policy import apportion
from sftlab.run.folder import LOGS, STATE_FILE, complete_checkpoints
from sftlab.screen import complain
from sftlab.study.freed import FREED_FILE, has_checkpoint, is_done
from sftlab.study.study import Run, Study

STAGES_FILE = "stages.json"  # in a study's folder: the stages of its runs as they were planned


@dataclass(frozen=True)
class StageNode:
    """One stage of one run.

    Attributes:
        name: Name of the stage.
        key: Hash of what is trained and measured, and how: equal keys mean equal results.
        trained_key: Hash of the part that determines the weights.
        end_step: The run's optimizer steps at its end.
        tokens: Tokens that it trains.
        supervised_tokens: Tokens that the loss sees.
    """

    name: str
    key: str
    trained_key: str
    end_step: int
    tokens: int
    supervised_tokens: int


@dataclass(frozen=True)
class PlannedRun:
    """A run, its folder and its stages.

    Attributes:
        run: The run.
        folder: The folder of its results.
        config_file: Its config.
        stages: Its stages in the order of training.
        full: For each stage the abilities that it trains in full.
        declared: Whether only counts are known: tokens are then examples, and it can be planned, not trained.
    """

    run: Run
    folder: Path
    config_file: Path
    stages: tuple[StageNode, ...]
    full: dict[str, tuple[str, ...]]
    declared: bool = False

    def num_done(self) -> int:
        """Number of stages that are complete in the run's folder."""
        done = 0
        for stage in self.stages:
            if not is_done(self.folder, stage):
                break
            done += 1
        return done


@dataclass(frozen=True)
class Job:
    """A part of one run: reuse the first stages of another run, then train up to a stage.

    Attributes:
        name: Name of the job, unique in the study.
        run: Name of the run.
        folder: Folder of the run.
        config_file: Config of the run.
        stages: All stages of the run up to the last one that this job completes.
        source: Folder of the run that the first ``num_shared`` stages are taken from.
        num_shared: Number of stages that are taken from there.
        num_before: Number of stages that exist when training starts, reused or trained before.
        needs: Names of the jobs that must be done before.
    """

    name: str
    run: str
    folder: str
    config_file: str
    stages: tuple[StageNode, ...]
    source: str
    num_shared: int
    num_before: int
    needs: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that it trains."""
        return sum(stage.tokens for stage in self.stages[self.num_before :])

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Job:
        """Restore what ``to_dict`` returned. Checked, so that no job touches anything outside lightning_logs/.

        Raises:
            ValueError: A name or a folder could lead elsewhere, or a value is invalid.
        """
        texts = ("name", "run", "folder", "config_file", "source")
        if wrong := [name for name in texts if not isinstance(content[name], str)]:
            raise ValueError(f"{wrong[0]} is not text")
        stages = tuple(StageNode(**stage) for stage in content["stages"])
        for stage in stages:
            named, counted = (stage.name, stage.key, stage.trained_key), (stage.tokens, stage.supervised_tokens)
            if not all(isinstance(text, str) for text in named) or not all(type(count) is int for count in counted):
                raise ValueError(f"a stage is not what it must be: {stage}")
        job = cls(**{**content, "stages": stages, "needs": tuple(content["needs"])})
        for kind, name in (("job", job.name), ("run", job.run), *(("stage", stage.name) for stage in stages)):
            checked_name(kind, name)
        check_run_folder(Path(job.folder))
        if job.num_shared:
            check_run_folder(Path(job.source))
        ends = [stage.end_step for stage in stages]
        if not ends or any(type(end) is not int or end < 1 for end in ends) or sorted(set(ends)) != ends:
            raise ValueError(f"job {job.name}: the stages end after steps {ends}, which do not rise")
        if not 0 <= job.num_shared <= job.num_before <= len(ends):
            raise ValueError(f"job {job.name}: {job.num_shared} and {job.num_before} of {len(ends)} stages")
        return job


def check_run_folder(folder: Path) -> None:
    """Check that a folder is lightning_logs/<study>/runs/<run>, and no link leads elsewhere.

    Raises:
        ValueError: It is another folder.
    """
    logs, study, runs, run = folder.parts if len(folder.parts) == 4 else ("", "", "", "")
    is_inside = folder.parent.resolve().is_relative_to(LOGS.resolve()) and not folder.is_symlink()
    if logs != str(LOGS) or runs != "runs" or not is_inside:
        raise ValueError(f"{folder} is not a folder of a study's run; such a one is {LOGS}/<study>/runs/<run>")
    checked_name("study", study)
    checked_name("run", run)


def study_folder(study: Study) -> Path:
    """Return the folder of a study.

    Raises:
        ValueError: It is the folder of a run.
    """
    folder = LOGS / study.name
    if (folder / STATE_FILE).is_file():
        raise ValueError(f"study: {folder} is the folder of a run; give the study another name, such as by --name")
    return folder


def plan_runs(study: Study) -> Iterator[PlannedRun]:
    """Write each run's config and compile its plan; loads data and tokenizer, no weights.

    Raises:
        ValueError: A config has problems.
    """
    from sftlab.cli import parse_objects

    folder = study_folder(study)
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    by_name, lengths = {run.name: run for run in study.runs}, dict[str, dict[str, int]]()

    def compiled(run: Run) -> tuple[Any, Plan]:
        config_file = folder / "configs" / f"{run.name}.yaml"
        write_text(config_file, yaml.safe_dump(run.config, sort_keys=False))
        objects = parse_objects(["--config", str(config_file)])
        plan = objects.schedule.compile(objects.data, objects.model)
        supervised = sum(row.supervised_tokens for row in ledger(plan))
        lengths[run.name] = {"steps": plan.num_steps, "supervised_tokens": supervised, "is_open": plan.is_open}
        return objects, plan

    for run in study.runs:
        objects, plan = compiled(run)
        if run.budget_of:
            if run.budget_of not in lengths:
                compiled(by_name[run.budget_of])
            unit = str(run.factors["budget"])
            if lengths[run.budget_of]["is_open"] and unit != "steps":
                raise ValueError(
                    f"budget: {run.budget_of} adapts while it trains, so its {unit} are not known before; hold runs "
                    "equal in steps"
                )
            run = _as_long_as(run, plan, unit, lengths[run.budget_of][unit])
            objects, plan = compiled(run)
        config_file = folder / "configs" / f"{run.name}.yaml"
        rows = ledger(plan)
        stages = []
        for planned, key in zip(plan.stages, objects.stage_keys(plan), strict=True):
            name = planned.stage.name
            mine = [row for row in rows if row.stage == name]
            known = min(planned.end_step, plan.num_compiled_steps) - planned.first_step
            scale = planned.num_steps / max(1, known)  # an adaptive stage, by its first segment
            tokens = [
                round(scale * sum(getattr(row, unit) for row in mine)) for unit in ("tokens", "supervised_tokens")
            ]
            stages.append(StageNode(name, key.full, key.trained, planned.end_step, *tokens))
        full = trained_in_full(plan)
        yield PlannedRun(run, folder / "runs" / run.name, config_file, tuple(stages), full, plan.declared)


def _as_long_as(run: Run, plan: Plan, unit: str, total: int) -> Run:
    """Return a run with this many steps or supervised tokens in total, divided among stages as in its own plan."""
    rows = ledger(plan)
    own = {
        stage.stage.name: stage.num_steps
        if unit == "steps"
        else sum(row.supervised_tokens for row in rows if row.stage == stage.stage.name)
        for stage in plan.stages
    }
    shares = {name: size / max(1, sum(own.values())) for name, size in own.items()}
    config = deepcopy(run.config)
    for name, size in apportion(total, shares).items():
        set_key(config, ["schedule", "per_stage", name, unit], max(1, size))
    return replace(run, config=config)


def save_stages(folder: Path, planned: Sequence[PlannedRun]) -> None:
    """Record the stages of a study, so that other studies can reuse them; runs that it had before stay."""
    found = {run.folder: run.stages for run in planned}
    before = _saved_stages(folder / STAGES_FILE) if (folder / STAGES_FILE).is_file() else []
    found |= {place: stages for place, stages in before if place not in found and place.is_dir()}
    rows = [{"folder": str(place), "stages": [asdict(one) for one in stages]} for place, stages in found.items()]
    write_text(folder / STAGES_FILE, json.dumps(rows))


def refuse_changed(folder: Path, planned: Sequence[PlannedRun]) -> None:
    """Refuse to take for a run's results what its folder holds of another plan: other data, base or settings.

    Raises:
        ValueError: Some runs were planned otherwise when they were trained: says which.
    """
    before = dict(_saved_stages(folder / STAGES_FILE)) if (folder / STAGES_FILE).is_file() else {}
    changed = [run.folder for run in planned if run.folder in before and _is_changed(run, before[run.folder])]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{len(changed)} run(s) were trained with other data, another base or other settings than the study has "
            f"now: {', '.join(map(str, changed[:3]))}{more}. Give it another name, so that it gets a folder of its "
            "own, undo the change, or delete those folders to train them again"
        )


def _is_changed(run: PlannedRun, before: tuple[StageNode, ...]) -> bool:
    """Return whether a run's folder holds anything of other stages than those that are planned now."""
    if not ((run.folder / FREED_FILE).is_file() or complete_checkpoints(run.folder)):
        return False
    was = replace(run, stages=before)
    done = was.num_done()
    is_trained_alike = [one.trained_key for one in before] == [one.trained_key for one in run.stages]
    return not is_trained_alike or [s.key for s in before[:done]] != [s.key for s in run.stages[:done]]


def other_studies(study: Study, keys: Collection[str]) -> list[PlannedRun]:
    """Return runs of other studies that have finished one of these stages."""
    found = []
    for path in sorted(LOGS.glob(f"*/{STAGES_FILE}")):
        if path.parent.name == study.name:
            continue
        for folder, stages in _saved_stages(path):
            run = PlannedRun(Run(folder.name, "", 0, {}, {}), folder, Path(), stages, {})
            if run.num_done() and stages[0].key in keys:
                found.append(run)
    return found


def _saved_stages(path: Path) -> list[tuple[Path, tuple[StageNode, ...]]]:
    """Return what ``save_stages`` wrote; empty, with a message, if the file is damaged or leads elsewhere."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [(Path(row["folder"]), tuple(StageNode(**stage) for stage in row["stages"])) for row in rows]
        for folder, stages in found:
            check_run_folder(folder)
            for stage in stages:
                checked_name("stage", stage.name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        complain(f"{path} is ignored, no stage of that study is reused: {error}")
        return []
    return found


def find_problems_of(study: Study) -> list[str]:
    """Return problems of the runs' configs, each listed once with the number of runs that have it."""
    from sftlab.cli import config_problems

    found: dict[str, list[str]] = {}
    for run in study.runs:
        for problem in config_problems(run.config):
            found.setdefault(problem, []).append(run.name)
    return [f"{text} (in {len(names)} of {len(study.runs)} runs)" for text, names in found.items()]


def jobs_of(planned: Sequence[PlannedRun], others: Sequence[PlannedRun] = ()) -> list[Job]:
    """Return the remaining jobs, each after those that it needs.

    Args:
        planned: The runs of a study.
        others: Runs of other studies, whose finished stages may be reused.
    """
    finished = [(stage, run) for run in [*others, *planned] for stage in run.stages[: run.num_done()]]
    # Key of a stage -> the run that can be continued from it, or else the first that must train it.
    home = {stage.key: run for stage, run in finished if has_checkpoint(run.folder, stage)}
    for run in planned:
        for stage in run.stages[run.num_done() :]:
            home.setdefault(stage.key, run)
    unfinished = [run for run in planned if run.num_done() < len(run.stages)]
    branching = {run.stages[shared - 1].key for run in unfinished if (shared := _num_shared(run, home))}
    jobs: list[Job] = []
    trained_by: dict[str, str] = {}  # key of a stage -> name of its job
    for run in planned:
        done, shared = run.num_done(), _num_shared(run, home)
        if done == len(run.stages):
            continue
        start = max(done, shared)
        ends = [end for end in range(start + 1, len(run.stages)) if run.stages[end - 1].key in branching]
        for end in [*ends, len(run.stages)]:
            first = start == max(done, shared)
            need = trained_by.get(run.stages[start - 1].key) if start else None
            source = home[run.stages[shared - 1].key] if first and shared > done else run
            job = _job(run, source, shared, start, end, need)
            jobs.append(job)
            trained_by.update((stage.key, job.name) for stage in run.stages[start:end])
            start = end
    return jobs


def _num_shared(run: PlannedRun, home: Mapping[str, PlannedRun]) -> int:
    """Return how many first stages of a run another run has or will have."""
    return max((i + 1 for i, stage in enumerate(run.stages) if home.get(stage.key, run) is not run), default=0)


def _job(run: PlannedRun, source: PlannedRun, shared: int, start: int, end: int, need: str | None) -> Job:
    whole = end == len(run.stages)
    name = run.run.name if whole else f"{run.run.name}-until-{run.stages[end - 1].name}"
    places = (str(run.folder), str(run.config_file))
    counts = (0 if source is run else shared, start)
    return Job(name, run.run.name, *places, run.stages[:end], str(source.folder), *counts, (need,) if need else ())
