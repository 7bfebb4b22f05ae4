"""``study``: plan a grid of runs, train what is missing, gather results and report."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftlab.study.graph import Job, PlannedRun
    from sftlab.study.job import Outcome
    from sftlab.study.study import Study

HELP = """usage: python -m sftlab study --config configs/studies/rq4.yaml [options]

Runs a base config over named changes, a grid of values and seeds. Equal stages of different runs are trained once.
The same command goes on after a kill, runs again what failed, and does nothing when all is done.

  --config FILE          a study; see configs/studies/
  --dry-run              print the plan: runs, stages, tokens, what is shared, what is done, an estimate of time
  --seeds 1,2,3          these seeds instead of the file's
  --set.KEY VALUE        a change for all runs: --set.data.abilities.math.num_examples 500
  --executor local       local, ray, or print: the commands for a scheduler of your own
  --num_workers 1        local: runs side by side, each with its part of the threads (and GPUs)
  --ray_address auto     ray: a cluster's address; left out, one is started on this machine
  --num_cpus 1           ray: cores of one job (--num_gpus 0: its GPUs)
  --name NAME            folder in lightning_logs/, instead of the file's
  --job FILE             do one job that --executor print has written
"""
_OPTIONS = {
    "config": "", "seeds": "", "executor": "local", "num_workers": "1", "ray_address": "", "num_cpus": "1",
    "num_gpus": "0", "name": "", "job": "",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Plan, run, gather, report."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    options, changes, dry_run = _parsed(arguments)
    if options["job"]:
        return _do_one(Path(options["job"]))
    if not options["config"]:
        raise ValueError("study needs --config FILE; see configs/studies/")
    study = _study(options, changes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(study, options, dry_run)
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished stays; the same command goes on.", file=sys.stderr)
        return 130


def _parsed(arguments: list[str]) -> tuple[dict[str, str], dict[str, Any], bool]:
    """Options, changes for all runs, and whether only the plan is wanted."""
    from sftlab.config import option_pairs, scalar

    dry_run = "--dry-run" in arguments
    options, changes = dict(_OPTIONS), {}
    for name, value in option_pairs([word for word in arguments if word != "--dry-run"]):
        if name.startswith("set."):
            changes[name.removeprefix("set.")] = scalar(value)
        elif name in options:
            options[name] = value
        else:
            raise ValueError(f"study has no option --{name}; see study --help")
    if options["executor"] not in ("local", "ray", "print"):
        raise ValueError(f"--executor: {options['executor']!r} is not local, ray or print")
    for name in ("num_workers", "num_cpus", "num_gpus"):
        if not options[name].replace(".", "", 1).isdigit() or (name == "num_workers" and not int(options[name])):
            raise ValueError(f"--{name}: {options[name]!r} is not a number that makes sense")
    return options, changes, dry_run


def _study(options: dict[str, str], changes: dict[str, Any]) -> Study:
    from sftlab.study.graph import find_problems_of
    from sftlab.study.study import read_study

    replaced: dict[str, Any] = {"study": options["name"]} if options["name"] else {}
    if options["seeds"]:
        seeds = options["seeds"].split(",")
        if not all(seed.strip().isdigit() for seed in seeds):
            raise ValueError(f"--seeds: {options['seeds']!r} is not a list of whole numbers such as 1,2,3")
        replaced["seeds"] = [int(seed) for seed in seeds]
    study = read_study(Path(options["config"]), replaced, changes)
    if found := find_problems_of(study):
        raise ValueError("\n  ".join([f"the study's configs have {len(found)} problem(s):", *found]))
    return study


def _run(study: Study, options: dict[str, str], dry_run: bool) -> int:
    from rich.console import Console

    from sftlab.study.executors import commands, run_local, run_ray
    from sftlab.study.graph import jobs_of, other_studies, plan_runs, save_stages, study_folder
    from sftlab.study.job import write_jobs
    from sftlab.study.overview import Teller, overview

    console, folder = Console(), study_folder(study)
    console = console if console.is_terminal else Console(width=160)
    with console.status(f"Planning {len(study.runs)} runs"):
        planned = list(plan_runs(study))
    declared = any(run.declared for run in planned)
    others = [] if declared else other_studies(study, [stage.key for run in planned for stage in run.stages])
    jobs = jobs_of(planned, others)
    console.print(overview(study, planned, jobs, int(options["num_workers"])))
    if dry_run:
        return 0
    if declared:
        raise ValueError(f"{study.name}: an ability only declares a count (path: null); --dry-run can plan it, no more")
    save_stages(folder, planned)
    if options["executor"] == "print":
        write_jobs(jobs, folder / "jobs")
        print("\n".join(commands(jobs, str(folder / "jobs"))))
        print("# then: the same study command gathers the results and writes the report")
        return 0
    tell = Teller(console, planned, jobs)
    if options["executor"] == "ray":
        share = float(options["num_cpus"]), float(options["num_gpus"])
        outcomes = run_ray(jobs, options["ray_address"], *share, tell) if jobs else []
    else:
        outcomes = run_local(jobs, int(options["num_workers"]), tell)
    return _finish(folder, study, planned, jobs, outcomes)


def _finish(
    folder: Path, study: Study, planned: Sequence[PlannedRun], jobs: Sequence[Job], outcomes: Sequence[Outcome]
) -> int:
    """Gather and report; exit status 1 where a run failed."""
    from sftlab.study.results import write_results

    run_of = {job.name: job.run for job in jobs}
    errors = {run_of[outcome.job]: outcome.error for outcome in outcomes if outcome.error}
    write_results(study, planned, folder, errors)
    from sftlab.commands.report import main as report

    for run, error in errors.items():
        print(f"\nfailed: {run}\n{error}\n", file=sys.stderr, flush=True)
    report([str(folder)])
    if errors:
        print(f"\n{len(errors)} run(s) failed; the same command runs them again.", file=sys.stderr)
    return 1 if errors else 0


def _do_one(path: Path) -> int:
    from sftlab.study.job import carry_out, read_job

    outcome = carry_out(read_job(path), {})
    if outcome.error:
        print(outcome.error, file=sys.stderr)
    return 1 if outcome.error or math.isnan(outcome.seconds) else 0
