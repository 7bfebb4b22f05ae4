"""``study``: plan a grid of runs, train what is missing, gather results and report."""

from __future__ import annotations

import math
import signal
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.commands.options import CommandParser, dotted, existing_file, number, seeds, wants_help, whole_number
from sftlab.config import scalar
from sftlab.screen import complain, screen, show

if TYPE_CHECKING:
    from sftlab.study.graph import Job, PlannedRun
    from sftlab.study.job import Outcome
    from sftlab.study.study import Study

PARSER = CommandParser(
    "study",
    "Runs a base config over named changes, a grid of values and seeds. Equal stages of different runs are trained\n"
    "once. The same command goes on after a kill, runs again what failed, and does nothing when all is done.",
    notes="""
--set.KEY VALUE is a change for all runs: --set.data.abilities.math.num_examples 500
""",
)
PARSER.add_argument("--config", type=Path, metavar="FILE", help="a study; see configs/studies/")
PARSER.add_argument(
    "--dry-run",
    action="store_true",
    help="print the plan: runs, stages, tokens, what is shared, what is done, an estimate of time",
)
PARSER.add_argument("--seeds", type=seeds, default=[], metavar="1,2,3", help="these seeds instead of the file's")
PARSER.add_argument(
    "--executor",
    default="local",
    choices=("local", "ray", "print"),
    help="print writes the commands for a scheduler of your own",
)
PARSER.add_argument(
    "--num_workers",
    type=whole_number(1, 1024),
    default=1,
    metavar="1",
    help="local: runs side by side, each with its part of the threads (and GPUs)",
)
PARSER.add_argument(
    "--ray_address", default="", metavar="auto", help="a cluster's address; left out, one is started on this machine"
)
PARSER.add_argument("--num_cpus", type=number(0, 1e4), default=1.0, metavar="1", help="ray: cores of one job")
PARSER.add_argument("--num_gpus", type=number(0, 1e4), default=0.0, metavar="0", help="ray: GPUs of one job")
PARSER.add_argument("--name", default="", metavar="NAME", help="folder in lightning_logs/, instead of the file's")
PARSER.add_argument("--job", type=existing_file, metavar="FILE", help="do one job that --executor print has written")


def main(arguments: list[str]) -> int:
    """Plan, run, gather, report."""
    if wants_help(arguments, PARSER):
        return 0
    options, rest = PARSER.parse_known_args(arguments)
    if options.job:
        return _do_one(options.job)
    changes = {}
    for key, value in dotted(rest).items():
        if not key.startswith("set."):
            PARSER.refuse([f"--{key}"])
        changes[key.removeprefix("set.")] = scalar(value)
    if not options.config:
        raise ValueError("study needs --config FILE; see configs/studies/")
    study = _study(options, changes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(study, options)
    except KeyboardInterrupt:
        complain("\nInterrupted. What is finished stays; the same command goes on.")
        return 130


def _study(options: Namespace, changes: dict[str, Any]) -> Study:
    from sftlab.study.graph import find_problems_of
    from sftlab.study.study import read_study

    replaced: dict[str, Any] = {"study": options.name} if options.name else {}
    if options.seeds:
        replaced["seeds"] = options.seeds
    study = read_study(options.config, replaced, changes)
    if found := find_problems_of(study):
        raise ValueError("\n  ".join([f"the study's configs have {len(found)} problem(s):", *found]))
    return study


def _run(study: Study, options: Namespace) -> int:
    from sftlab.study.executors import commands, run_local, run_ray
    from sftlab.study.graph import jobs_of, other_studies, plan_runs, save_stages, study_folder
    from sftlab.study.job import write_jobs
    from sftlab.study.overview import Teller, overview

    console, folder = screen(), study_folder(study)
    with console.status(f"Planning {len(study.runs)} runs"):
        planned = list(plan_runs(study))
    declared = any(run.declared for run in planned)
    others = [] if declared else other_studies(study, [stage.key for run in planned for stage in run.stages])
    jobs = jobs_of(planned, others)
    console.print(overview(study, planned, jobs, options.num_workers))
    if options.dry_run:
        return 0
    if declared:
        raise ValueError(f"{study.name}: an ability only declares a count (path: null); --dry-run can plan it, no more")
    save_stages(folder, planned)
    if options.executor == "print":
        write_jobs(jobs, folder / "jobs")
        show(*commands(jobs, str(folder / "jobs")))
        show("# then: the same study command gathers the results and writes the report")
        return 0
    tell = Teller(console, planned, jobs)
    if options.executor == "ray":
        outcomes = run_ray(jobs, options.ray_address, options.num_cpus, options.num_gpus, tell) if jobs else []
    else:
        outcomes = run_local(jobs, options.num_workers, tell)
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
        complain(f"\nfailed: {run}\n{error}\n")
    report([str(folder)])
    if errors:
        complain(f"\n{len(errors)} run(s) failed; the same command runs them again.")
    return 1 if errors else 0


def _do_one(path: Path) -> int:
    from sftlab.study.job import carry_out, read_job

    outcome = carry_out(read_job(path), {})
    if outcome.error:
        complain(outcome.error)
    return 1 if outcome.error or math.isnan(outcome.seconds) else 0
