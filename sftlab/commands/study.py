"""``study``: plan a grid of runs, train what is missing, collect results and report."""

from __future__ import annotations

import inspect
import math
import shlex
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.commands.interrupt import heed_sigterm
from sftlab.commands.options import (
    CommandParser,
    config_file,
    dotted,
    existing_file,
    number,
    seeds,
    wants_help,
    whole_number,
)
from sftlab.config import named_object
from sftlab.nearest import did_you_mean
from sftlab.screen import complain, screen, show, tell_progress
from sftlab.yaml_files import scalar

if TYPE_CHECKING:
    from sftlab.study.executors import Executor
    from sftlab.study.graph import Job, PlannedRun
    from sftlab.study.job import Outcome
    from sftlab.study.study import Keep, Study


def add_executor_options(parser: CommandParser) -> None:
    """Add the options that choose an executor."""
    parser.add_argument(
        "--executor",
        default="local",
        metavar="local",
        help="local; ray; print: writes the commands for a scheduler of your own; or the class path of an Executor of "
        "your own, its arguments as --executor.NAME VALUE",
    )
    parser.add_argument(
        "--num_workers",
        type=whole_number(1, 1024),
        default=1,
        metavar="1",
        help="local: runs side by side, each with its part of the threads (and GPUs)",
    )
    parser.add_argument(
        "--ray_address",
        default="",
        metavar="auto",
        help="ray: a cluster's address, whose nodes prepare the data too; left out, one is started on this machine",
    )
    parser.add_argument(
        "--num_cpus", type=number(0, 1e4), default=1.0, metavar="1", help="ray: cores of one job, a node"
    )
    parser.add_argument(
        "--num_gpus", type=number(0, 1e4), default=0.0, metavar="0", help="ray: GPUs of one job, a node"
    )


PARSER = CommandParser(
    "study",
    "Runs a base config over named changes, a grid of values and seeds. Equal stages of different runs are trained\n"
    "once. The same command goes on after a kill, runs again what failed, and does nothing when all is done.",
    notes="""
--set.KEY VALUE is a change for all runs: --set.data.abilities.math.num_examples 500
""",
)
PARSER.add_argument(
    "--config", type=config_file, metavar="FILE", help="a study; or sftlab:studies/rq3, which comes with sftlab"
)
PARSER.add_argument(
    "--dry-run",
    action="store_true",
    help="print the plan: runs, stages, tokens, what is shared, what is done, an estimate of time",
)
PARSER.add_argument("--seeds", type=seeds, default=[], metavar="1,2,3", help="these seeds instead of the file's")
add_executor_options(PARSER)
PARSER.add_argument("--name", default="", metavar="NAME", help="folder in lightning_logs/, instead of the file's")
PARSER.add_argument(
    "--prune",
    action="store_true",
    help="free the checkpoints of finished runs from which no other run will continue; with keep: scores in the file "
    "their models too. What is freed still counts as done",
)
PARSER.add_argument("--job", type=existing_file, metavar="FILE", help="do one job that --executor print has written")


def main(arguments: list[str]) -> int:
    """Plan, run, collect, report."""
    if wants_help(arguments, PARSER):
        return 0
    options, rest = PARSER.parse_known_args(arguments)
    if options.job:
        return _do_one(options.job)
    changes: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in dotted(rest).items():
        kind, _, name = key.partition(".")
        if kind not in ("set", "executor") or not name:
            PARSER.refuse([f"--{key}"])
        (changes if kind == "set" else own)[name] = scalar(value)
    if not options.config:
        raise ValueError("study needs --config FILE, such as --config sftlab:studies/rq3")
    executor = executor_of(options, own)
    study = _study(options.config, changes, options.name, options.seeds)
    status_when_interrupted = heed_sigterm()
    try:
        if (status := _meet_needs(study, options, executor, (options.config.resolve(),))) is not None:
            return status
        return _run(study, options, executor)
    except KeyboardInterrupt:
        stays = "" if options.dry_run else " Finished work is kept; the same command continues."
        complain(f"\nInterrupted.{stays}")
        return status_when_interrupted()


def prepared_where(options: Namespace) -> AbstractContextManager[None]:
    """Inside the block, prepare data on the nodes of a Ray cluster if the options name one."""
    from sftlab.data.cluster import prepared_on

    return prepared_on(options.ray_address if options.executor == "ray" else "", "--ray_address")


def executor_of(options: Namespace, own: dict[str, Any]) -> Executor | None:
    """Create the executor; None prints the jobs instead.

    Raises:
        ValueError: The executor does not exist, or does not take these arguments.
    """
    from sftlab.study.executors import Executor, Local, Ray

    name, shipped = options.executor, ("local", "ray", "print")
    if name in shipped and own:
        raise ValueError(f"--executor.{next(iter(own))}: {name} takes no arguments of that form; see study --help")
    if name in shipped:
        made = {
            "local": lambda: Local(options.num_workers),
            "ray": lambda: Ray(options.ray_address, options.num_cpus, options.num_gpus),
            "print": lambda: None,
        }
        return made[name]()
    chosen = named_object(name) if "." in name else None
    if chosen is None and "." in name:
        raise ValueError(f"--executor: {name} cannot be imported: there is no such module, or it has no such class")
    if not (isinstance(chosen, type) and issubclass(chosen, Executor)):
        hint = did_you_mean(name, shipped, "give local, ray, print or the class path of an Executor")
        raise ValueError(f"--executor: {name!r} is not an executor; {hint}")
    try:
        inspect.signature(chosen).bind(**own)
    except TypeError as error:
        raise ValueError(f"--executor {name}: {error}; give its arguments as --executor.NAME VALUE") from None
    return chosen(**own)


def _meet_needs(study: Study, options: Namespace, executor: Executor | None, above: tuple[Path, ...]) -> int | None:
    """Run missing needs of a study; return an exit status if the study itself cannot run now.

    Raises:
        ValueError: Studies need each other in a cycle.
    """
    for need in study.needs:
        if isinstance(need, Path):
            if need.resolve() in above:
                raise ValueError(f"{above[-1]}, needs: {need} needs this study in turn")
            needed = _study(need, {})
            status = _meet_needs(needed, options, executor, (*above, need.resolve()))
            if status is None:
                status = _run(needed, options, executor, needed_by=study.name)
            if status is not None:
                return status
            continue
        command, arguments = need
        if Path(str(arguments["to"])).exists():
            continue
        words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        show(f"{study.name} needs: {shlex.join(['python', '-m', 'sftlab', command, *words])}")
        if options.dry_run or executor is None:
            if options.dry_run:
                show("Without --dry-run that runs first; only then the study can be planned.")
            return 0
        if status := int(import_module(f"sftlab.commands.{command}").main(words) or 0):
            return status
    return None


def _study(config: Path, changes: dict[str, Any], name: str = "", seeds: Sequence[int] = ()) -> Study:
    from sftlab.study.graph import find_problems_of
    from sftlab.study.study import read_study

    replaced: dict[str, Any] = {"study": name} if name else {}
    if seeds:
        replaced["seeds"] = list(seeds)
    study = read_study(config, replaced, changes)
    if found := find_problems_of(study):
        raise ValueError("\n  ".join([f"the study's configs have {len(found)} problem(s):", *found]))
    return study


def _run(study: Study, options: Namespace, executor: Executor | None, needed_by: str = "") -> Any:
    """Plan, run, report; return the exit status, or None for a need of another study that is met."""
    from sftlab.study.executors import commands
    from sftlab.study.graph import jobs_of, other_studies, plan_runs, refuse_changed, save_stages, study_folder
    from sftlab.study.job import write_jobs
    from sftlab.study.overview import Teller, overview, uncounted_words
    from sftlab.study.results import uncounted_runs

    console, folder = screen(), study_folder(study)
    planned: list[PlannedRun] = []
    tell_progress(f"{study.name}, runs planned", 0, len(study.runs))  # takes as long as preparing the data
    with prepared_where(options):
        for run in plan_runs(study):
            planned.append(run)
            tell_progress(f"{study.name}, runs planned", len(planned), len(study.runs))
    refuse_changed(folder, planned)
    declared = any(run.declared for run in planned)
    others = [] if declared else other_studies(study, [stage.key for run in planned for stage in run.stages])
    jobs = jobs_of(planned, others)
    if needed_by and not jobs:
        return None
    if needed_by:
        show(f"{needed_by} needs {study.name} first:")
    console.print(overview(study, planned, jobs, getattr(executor, "num_slots", None) or 1))
    after = f"# then: the same study command {'goes on' if needed_by else 'gathers the results and writes the report'}"
    for words in uncounted_words(folder, uncounted_runs(folder, planned)):
        console.print(words)
    if options.dry_run:
        show(*([f"{needed_by} itself can be planned once {study.name} has run."] if needed_by else []))
        return 0
    if declared:
        raise ValueError(f"{study.name}: an ability only declares a count (path: null); --dry-run can plan it, no more")
    save_stages(folder, planned)
    if executor is None:
        write_jobs(jobs, folder / "jobs")
        show(*commands(jobs, str(folder / "jobs")), after)
        return 0
    outcomes = executor.run(jobs, Teller(console, planned, jobs)) if jobs else []
    status = _finish(folder, study, planned, jobs, outcomes)
    _free(study, planned, others, options.prune)
    return None if needed_by and not status else status


def _free(study: Study, planned: Sequence[PlannedRun], others: Sequence[PlannedRun], is_asked: bool) -> None:
    """Free what the study does not keep, and report it; remove what killed runs left behind."""
    from sftlab.study.graph import jobs_of
    from sftlab.study.keep import prune, remove_leftovers

    remove_leftovers(planned)
    keep: Keep = "weights" if is_asked and study.keep == "all" else study.keep
    num_runs, num_bytes = prune(planned, keep, {job.source for job in jobs_of(planned, others)})
    if num_runs:
        show(f"Freed {num_bytes / 1e9:,.3f} GB of {num_runs} finished runs (keep: {keep})")
    elif is_asked:
        show("Nothing to free: no finished run holds more than is kept")


def _finish(
    folder: Path, study: Study, planned: Sequence[PlannedRun], jobs: Sequence[Job], outcomes: Sequence[Outcome]
) -> int:
    """Collect and report; return exit status 1 if a run failed."""
    from sftlab.study.results import uncounted_runs, write_results

    run_of = {job.name: job.run for job in jobs}
    errors = {run_of[outcome.job]: outcome.error for outcome in outcomes if outcome.error}
    write_results(study, planned, folder, errors, uncounted_runs(folder, planned))
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
