"""Runs of a search as a study: planned, trained by any executor, and scored from the study's files.

lightning_logs/<search>/study.yaml   a study file with every run that was chosen so far
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from sftlab.files import write_text
from sftlab.report.evidence import read_evidence
from sftlab.report.rows import HELD_OUT, Result
from sftlab.run.folder import LOGS
from sftlab.screen import complain, show, tell_progress
from sftlab.search.observation import Observation, Trial
from sftlab.search.search import RunsFailed, Site
from sftlab.search.spec import SearchSpec
from sftlab.shipped import PREFIX
from sftlab.study.executors import Executor, commands
from sftlab.study.graph import (
    PlannedRun,
    find_problems_of,
    jobs_of,
    other_studies,
    plan_runs,
    refuse_changed,
    save_stages,
)
from sftlab.study.job import write_jobs
from sftlab.study.keep import remove_leftovers
from sftlab.study.overview import Teller, overview
from sftlab.study.results import tokens_of, write_results
from sftlab.study.study import Run, Study, read_study

STUDY_FILE = "study.yaml"
_BUDGETS = ("epochs", "steps", "supervised_tokens")
_FEW = 3  # runs that are planned without a message


class StudySite(Site):
    """Makes runs as a study with the search's name.

    Args:
        spec: The search.
        budget: The budget of the base's schedule, for anchors that have a schedule of their own.
        executor: Creates an executor for each batch; None prints the jobs instead.
        console: Shows plans and progress.
    """

    def __init__(
        self, spec: SearchSpec, budget: Mapping[str, Any], executor: Callable[[], Executor | None], console: Console
    ) -> None:
        self.spec, self.budget, self.executor, self.console = spec, dict(budget), executor, console
        self.folder = LOGS / spec.name
        self._planned: dict[str, PlannedRun] = {}

    def tokens(self, trials: Sequence[Trial], more: Sequence[Trial]) -> int:
        """Count the tokens that ``more`` trains in stages that neither ``trials`` nor other studies have."""
        before, planned = self._plan(self.study(trials)) if trials else [], self._plan(self.study(more))
        known = {stage.key for run in before for stage in run.stages}
        found = {stage.key: stage.tokens for run in planned for stage in run.stages if stage.key not in known}
        return sum(found.values())

    def carry_out(self, trials: Sequence[Trial]) -> None:
        """Plan, train what is missing, collect the scores.

        Raises:
            RunsFailed: Some failed, or their commands were only printed.
            ValueError: A config has problems.
        """
        study, planned, jobs = self._jobs(trials)
        if any(run.declared for run in planned):
            raise ValueError(f"{self.spec.name}: an ability only declares a count (path: null); --dry-run can plan it")
        save_stages(self.folder, planned)
        executor = self.executor()
        if jobs:
            num_workers = getattr(executor, "num_slots", None) or 1
            self.console.print(overview(study, planned, jobs, num_workers, hides_finished=True))
        if jobs and executor is None:
            write_jobs(jobs, self.folder / "jobs")
            show(
                *commands(jobs, str(self.folder / "jobs")),
                "# then give the same search command again: it chooses the next runs",
            )
            raise RunsFailed(0)
        outcomes = executor.run(jobs, Teller(self.console, planned, jobs)) if jobs and executor else []
        run_of = {job.name: job.run for job in jobs}
        errors = {run_of[outcome.job]: outcome.error for outcome in outcomes if outcome.error}
        write_results(study, planned, self.folder, errors)
        remove_leftovers(planned)
        for run, error in errors.items():
            complain(f"\nfailed: {run}\n{error}\n")
        if errors:
            complain(f"{len(errors)} run(s) failed; the same command runs them again and continues.")
            raise RunsFailed(1)

    def show_plan(self, trials: Sequence[Trial]) -> None:
        """Print what would be run."""
        study, planned, jobs = self._jobs(trials)
        if jobs:
            self.console.print(overview(study, planned, jobs, 1, hides_finished=True))
        else:
            self.console.print(f"All {len(planned):,} runs are finished.")

    def _jobs(self, trials: Sequence[Trial]) -> tuple[Study, list[PlannedRun], list[Any]]:
        study = self.study(trials)
        known = {name: run.run for name, run in self._planned.items()}
        new = [run for run in study.runs if known.get(run.name) != run]
        if found := find_problems_of(_part(study, new)) if new else []:
            raise ValueError("\n  ".join([f"the search's runs have {len(found)} problem(s):", *found]))
        planned = self._plan(study)
        refuse_changed(self.folder, planned)
        for run in planned:  # an older plan may have had this name
            write_text(run.config_file, yaml.safe_dump(run.run.config, sort_keys=False))
        others = [] if any(run.declared for run in planned) else other_studies(study, _keys(planned))
        return study, planned, jobs_of(planned, others)

    def observations(self, trials: Sequence[Trial]) -> list[Observation]:
        """Return the last stage's headline score of each ability, for each run.

        Raises:
            ValueError: An ability that the search weighs has no score in some run.
        """
        evidence = read_evidence(self.folder)
        rows = [r for r in evidence.results if r.last_stage and not r.inside and r.headline and r.task != HELD_OUT]
        found = {(trial, seed): _first_scores(rows, trial, seed) for trial in trials for seed in trial.seeds}
        weighed = {ability for ability, weight in self.spec.weights.items() if weight > 0}
        weighed |= {constraint.ability for constraint in self.spec.constraints}
        for (trial, seed), first in found.items():
            run = f"{evidence.folder}: {trial.name} with seed {seed}"
            if none := [ability for ability in self.spec.weights if ability in weighed and ability not in first]:
                raise ValueError(
                    f"{run} has no score of {', '.join(none)}, which the search weighs: give ScoreAbilities in "
                    "trainer.callbacks a task for it, or leave it out of the search file's weights"
                )
            if none := [ability for ability, row in first.items() if ability in weighed and row.value is None]:
                raise ValueError(
                    f"{run} has no graded answer of {', '.join(none)}, which is not a score of 0: see why in its run "
                    "folder's scores.jsonl, or leave it out of the search file's weights"
                )
        known = [ability for ability in next(iter(found.values()), {}) if all(_has(r, ability) for r in found.values())]
        for ability in known:
            metrics = sorted({f"{first[ability].task} {first[ability].metric}" for first in found.values()})
            if len(metrics) > 1:
                raise ValueError(
                    f"{evidence.folder}: runs score {ability} by different rules, {' and '.join(metrics)}, which "
                    "cannot be compared: name the rule in the base config, and give the search a new name"
                )
        return [_observation(trial, seed, first, known) for (trial, seed), first in found.items()]

    def study(self, trials: Sequence[Trial]) -> Study:
        """Return the study of these trials, after writing its file."""
        path = self.folder / STUDY_FILE
        content = {
            "study": self.spec.name,
            "title": self.spec.title,
            "question": self.spec.question,
            **moved_content(self.spec.content, self.spec.folder, path.parent),
            "seeds": list(self.spec.seeds),
            "runs": {trial.name: self._entry(trial) for trial in trials},
            "figures": ["search"],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False))
        return read_study(path)

    def _entry(self, trial: Trial) -> dict[str, Any]:
        """Return a run of the study file."""
        if trial.point is not None:
            return {"grid": self.spec.space.grid(trial.point), "seeds": list(trial.seeds)}
        anchor = trial.anchor
        assert anchor is not None, "only an anchor lies outside of the space"
        changes = dict(anchor.changes)
        if not changes:
            order = {"order": [anchor.alone]} if anchor.alone else {}
            kind = "Sequential" if anchor.alone else "MultiTask"
            changes = {"schedule": {"class_path": kind, "init_args": {**order, **self.budget}}}
        return {"set": changes, "grid": {}, "seeds": list(trial.seeds)}

    def _plan(self, study: Study) -> list[PlannedRun]:
        new = [run for run in study.runs if (old := self._planned.get(run.name)) is None or old.run != run]
        told = len(new) if len(new) > _FEW else 0
        if told:
            tell_progress(f"{study.name}, runs planned", 0, told)
        for number, run in enumerate(plan_runs(_part(study, new)) if new else (), 1):
            self._planned[run.run.name] = run
            if told:
                tell_progress(f"{study.name}, runs planned", number, told)
        return [self._planned[run.name] for run in study.runs]

    def saved_tokens(self, trials: Sequence[Trial]) -> tuple[int, int]:
        """Return the tokens of all runs, and those of their distinct stages, which are trained."""
        planned = self._plan(self.study(trials))
        once = {stage.key: stage.tokens for run in planned for stage in run.stages}
        return sum(tokens_of(run.stages) for run in planned), sum(once.values())


def _keys(planned: Sequence[PlannedRun]) -> list[str]:
    return [stage.key for run in planned for stage in run.stages]


def _part(study: Study, runs: Sequence[Run]) -> Study:
    """Return a study with some of the runs."""
    return Study(**{**vars(study), "runs": tuple(runs)})


def _first_scores(rows: Sequence[Result], trial: Trial, seed: int) -> dict[str, Result]:
    """Return the first score of each ability of a run."""
    first: dict[str, Result] = {}
    for row in rows:
        if row.config == trial.name and row.seed == seed:
            first.setdefault(row.ability, row)
    return first


def _has(first: Mapping[str, Result], ability: str) -> bool:
    return ability in first and first[ability].value is not None


def _observation(trial: Trial, seed: int, first: Mapping[str, Result], abilities: Sequence[str]) -> Observation:
    values = {a: float(first[a].value or 0.0) / float(first[a].best or 1.0) for a in abilities}
    problems = {a: (str(first[a].problems), first[a].metric) for a in abilities if first[a].problems}
    return Observation(trial.name, seed, values, problems)


def moved_content(content: Mapping[str, Any], source: Path, to: Path) -> dict[str, Any]:
    """Return ``base`` and ``set`` of a search file as written in a study file in another folder."""
    bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
    moved = [str(base) if str(base).startswith(PREFIX) else os.path.relpath(source / str(base), to) for base in bases]
    return {"base": moved, **({"set": content["set"]} if content.get("set") else {})}


def base_facts(path: Path, content: Mapping[str, Any], folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the number of examples of each ability of a search's base, and its schedule's budget.

    Args:
        path: The search file.
        content: Its keys.
        folder: Where the config is written temporarily.

    Raises:
        ValueError: The base has problems.
    """
    from sftlab.cli import parse_objects

    study = _base_study(path, content, folder)
    if found := find_problems_of(study):
        raise ValueError("\n  ".join([f"{path}, base: the config has {len(found)} problem(s):", *found]))
    config = study.runs[0].config
    file = folder / "base.yaml"
    write_text(file, yaml.safe_dump(config, sort_keys=False))
    objects = parse_objects(["--config", str(file)])
    if not all(ability.is_declared for ability in objects.data.abilities.values()):
        objects.data.load(objects.model.tokenizer)
    schedule = config.get("schedule") if isinstance(config.get("schedule"), dict) else {}
    arguments = (schedule or {}).get("init_args") or {}
    return {pool.ability: len(pool) for pool in objects.data.pools()}, {
        key: arguments[key] for key in _BUDGETS if arguments.get(key) is not None
    }


def _base_study(path: Path, content: Mapping[str, Any], folder: Path) -> Study:
    """Return the base as a study of one run."""
    if "base" not in content:
        raise ValueError(f"{path}: give base, the config of fit that the runs start from")
    for base in content["base"] if isinstance(content["base"], list) else [content["base"]]:
        if not str(base).startswith(PREFIX) and not (path.parent / str(base)).is_file():
            raise ValueError(f"{path}, base: there is no file {path.parent / str(base)}")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "base_study.yaml"
    moved = moved_content(content, path.parent, folder)
    write_text(file, yaml.safe_dump({**moved, "runs": {"base": {}}}, sort_keys=False))
    return read_study(file)
