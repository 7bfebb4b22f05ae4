"""Run folders, lightning_logs/<name>: which process owns them, the state of their runs, and their checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sftlab.files import checked_name, remove_folder, remove_stale, write_text
from sftlab.model.contents import ARCHITECTURE, NOTE_FILE, contents
from sftlab.processes import is_follower

LOGS = Path("lightning_logs")
STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"  # in a run's folder: its config, itself a config of fit
FOLDER_VARIABLE = "SFTLAB_RUN_FOLDER"  # environment variable that tells child processes their run's folder
LAUNCHER_VARIABLE = "SFTLAB_FIRST_RANK"  # environment variable with the process id of the first rank
JUDGING_FILE = "judging.json"  # scores that a run has not graded yet
_LAUNCHED = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # set for processes that a launcher starts side by side
_LOCK_FILE = ".lock"
_OF_START = (_LOCK_FILE, STATE_FILE, CONFIG_FILE, "hparams.yaml", ARCHITECTURE)  # the files that a start writes
_HELD: dict[Path, int] = {}  # folders in which this process runs, with the descriptor of the lock


@dataclass(frozen=True)
class RunState:
    """The state of a run, as recorded in ``state.json`` in its folder.

    Attributes:
        status: running, finished (the plan is trained to its end), stopped (can be resumed) or unknown.
        turn: Orders the starts of runs; unlike a clock, it never jumps.
        step: Number of optimizer steps done when it was written.
        num_steps: Number of steps of the whole plan, if known.
        is_trial: Whether it is a fast_dev_run, which cannot be resumed.
        process: Id of its process.
        host: The machine of that process.
    """

    status: str = "unknown"
    turn: int = 0
    step: int = 0
    num_steps: int | None = None
    is_trial: bool = False
    process: int = 0
    host: str = ""


def state_of(folder: Path) -> RunState:
    """Return the state of the run in a folder; one that was killed before its end counts as stopped."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        state = RunState(**{key: content[key] for key in RunState.__dataclass_fields__ if key in content})
        numbers = (state.turn, state.step, state.num_steps or 0, state.process)
        if not isinstance(state.status, str) or any(type(number) is not int for number in numbers):
            return RunState()  # damaged
    except (OSError, ValueError, TypeError, RecursionError):
        return RunState()
    if state.status != "running" or is_running(folder):
        return state
    is_at_end = state.num_steps is not None and state.step >= state.num_steps
    return replace(state, status="finished" if is_at_end else "stopped")


def is_running(folder: Path) -> bool:
    """Return whether a process holds the folder's lock, which the kernel releases when the process dies."""
    if folder.resolve() in _HELD:
        return True
    lock = _locked(folder)
    if lock is None:
        return True
    os.close(lock)
    return False


def begin(folder: Path, is_trial: bool = False) -> None:
    """Lock a folder for this process until it ends, and record that its run is running.

    Raises:
        ValueError: Another process holds the folder.
    """
    if is_follower() or folder.resolve() in _HELD:
        return
    (folder / _LOCK_FILE).touch()
    lock = _locked(folder)
    if lock is None:
        state = state_of(folder)
        raise ValueError(f"{folder} is in use by process {state.process} on {state.host}: wait for its end, or end it")
    _HELD[folder.resolve()] = lock
    os.environ[FOLDER_VARIABLE] = str(folder)
    remove_partials(folder)
    turn = 1 + max((state_of(other).turn for other in folder.parent.iterdir() if other.is_dir()), default=0)
    before = replace(state_of(folder), status="running", turn=turn, is_trial=is_trial)
    _write(folder, replace(before, process=os.getpid(), host=socket.gethostname()))


def remove_partials(folder: Path) -> None:
    """Remove the half-written files that killed processes left in a run."""
    for place in (folder, folder / "checkpoints", folder / "stages"):
        remove_stale(place)


def end(folder: Path, step: int, num_steps: int | None) -> None:
    """Record how far the run of this process has come: finished at the end of its plan, otherwise stopped."""
    if is_follower() or not (folder / STATE_FILE).is_file():
        return
    status = "finished" if num_steps is not None and step >= num_steps else "stopped"
    _write(folder, replace(state_of(folder), status=status, step=step, num_steps=num_steps))


def release(folder: Path) -> None:
    """Unlock a folder of this process, so that another run can begin in this process."""
    if (lock := _HELD.pop(folder.resolve(), None)) is not None:
        os.close(lock)
    if os.environ.get(FOLDER_VARIABLE) == str(folder):
        del os.environ[FOLDER_VARIABLE]


@contextmanager
def begun(folder: Path) -> Iterator[Path]:
    """Yield the folder of a run that has begun; release it if the block raises; see ``untouched_removed``."""
    try:
        with untouched_removed(folder):
            yield folder
    except BaseException:
        release(folder)
        raise


@contextmanager
def untouched_removed(folder: Path) -> Iterator[None]:
    """If the block raises, remove the folder of this process's run if it only holds what a start writes.

    Files from before the first step only describe the start, and the next start writes them again.
    """
    try:
        yield
    except BaseException:
        files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.resolve() in _HELD else [folder]
        if all(_is_of_start(path.relative_to(folder)) for path in files) and not folder.is_symlink():
            remove_folder(folder, folder.parent)
        raise


def _is_of_start(path: Path) -> bool:
    """Return whether a file of a run's folder is written before its first step."""
    name = path.parts[0] if path.parts else ""
    return name in _OF_START or name.startswith("events.out.tfevents")


def _write(folder: Path, state: RunState) -> None:
    write_text(folder / STATE_FILE, json.dumps(asdict(state), indent=1))


def _locked(folder: Path) -> int | None:
    """Return the descriptor of the folder's lock, or None if another process holds it.

    A POSIX lock: what this process starts (workers, ranks) does not inherit it, so it ends with this process.
    """
    try:
        number = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return os.open(os.devnull, os.O_RDWR)
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    except OSError:  # a file system without locks
        return number
    return number


def new_run_folder(name: str, is_trial: bool = False) -> Path:
    """Create and lock a folder for a new run: lightning_logs/<name>, or <name>-2 and so on if that exists.

    Processes that torchrun, srun or several nodes start at the same time cannot agree on a free number; there the first
    rank claims the plain name and the others follow.

    Raises:
        ValueError: The name is invalid, or the folder of such a launch exists already.
    """
    if FOLDER_VARIABLE in os.environ:
        folder = Path(os.environ[FOLDER_VARIABLE])
        if not is_follower():
            folder.mkdir(parents=True, exist_ok=True)
    elif any(variable in os.environ for variable in _LAUNCHED):
        folder = LOGS / checked_name("--run", name)
        restarted = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        if not is_follower() and not _claimed(folder) and not restarted:
            raise ValueError(f"--run: {folder} already holds a run; name another, or resume it with --ckpt_path last")
    else:
        folder, number = LOGS / checked_name("--run", name), 2
        while not _claimed(folder):
            folder, number = LOGS / f"{name}-{number}", number + 1
    begin(folder, is_trial)
    return folder


def _claimed(folder: Path) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def run_of(path: Path) -> Path | None:
    """Return the run folder that contains a checkpoint or any other file of a run; None if there is none."""
    for folder in path.absolute().parents:
        if state_of(folder).status != "unknown" or (folder / ARCHITECTURE / NOTE_FILE).is_file():
            return Path(os.path.relpath(folder)) if not path.is_absolute() else folder
    return None


def own_folder(config: str) -> Path | None:
    """Return the folder set for this process, or that of the run whose own ``config.yaml`` is given."""
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    folder = Path(config).parent
    return folder if Path(config).name == CONFIG_FILE and state_of(folder).status != "unknown" else None


@dataclass(frozen=True)
class Resumed:
    """The place where a run is resumed.

    Attributes:
        checkpoint: The checkpoint to resume from.
        folder: The run's folder; None if the checkpoint is outside of every run.
        notes: Lines that explain the choice to the user.
    """

    checkpoint: Path
    folder: Path | None
    notes: tuple[str, ...] = ()


def resumed(name: str, checkpoint: str, is_exact: bool = False, own: Path | None = None) -> Resumed:
    """Resolve ``--ckpt_path``: a path, or ``last`` for the newest complete checkpoint of a name's newest run.

    Args:
        name: Name of the run. Unless ``is_exact``, runs with a number after that name are considered too.
        checkpoint: A path or ``last``.
        is_exact: Whether the user has named the run.
        own: The folder of the run whose own config is given.

    Raises:
        ValueError: There is no checkpoint, or it cannot be resumed; says why.
    """
    if checkpoint != "last":
        path = Path(checkpoint)
        try:
            found = contents(path)
        except ValueError as error:
            raise ValueError(f"--ckpt_path: {error}") from None
        if not found.can_resume:
            raise ValueError(f"--ckpt_path: {path} is not a checkpoint of fit that training can resume from")
        run = run_of(path)
        is_other = is_exact and run is not None and run.name != name
        return Resumed(path, run, (f"--run {name} is not used: {path} is resumed in its own run, {run}",) * is_other)
    run, notes = (own, []) if own is not None else _meant(name, is_exact)
    told = len(notes)
    checkpoints = list(_whole(run, notes))
    if not checkpoints:
        others = [other for other in _runs_named(name) if other != run and complete_checkpoints(other)]
        hint = f"; {others[-1]} has one: --run {others[-1].name} --ckpt_path last resumes it" if others else _EARLY
        hint = hint if others or len(notes) == told else ": restore one, or start again without --ckpt_path"
        raise ValueError("\n  ".join([f"--ckpt_path last: {run} has no whole checkpoint{hint}", *notes]))
    path = checkpoints[-1]
    notes.append(f"Resuming {run}, {path.name}: {contents(path).step:,} steps done")
    return Resumed(path, run, tuple(notes))


_EARLY = (
    ": it ended before its first one. Start again without --ckpt_path; trainer.callbacks: [{class_path: RunCheckpoint, "
    "init_args: {every_n_steps: 50}}] writes them more often than every 500 steps and at the ends of stages"
)


def _meant(name: str, is_exact: bool) -> tuple[Path, list[str]]:
    """Return the run that ``last`` means: the newest that is not finished, else the newest."""
    known = {run: state for run in _runs_named(name) if not (state := state_of(run)).is_trial}
    taken = ("finished",) if is_follower() else ("finished", "running")  # other ranks join the run of the first one
    open_ones = [run for run, state in known.items() if state.status not in taken]
    if is_exact and (exact := LOGS / checked_name("--run", name)) in known:
        later = [run for run in open_ones if known[run].turn > known[exact].turn]
        if known[exact].status == "finished" and later:
            hint = f"to resume {later[-1]}, give --run {later[-1].name}"
            raise ValueError(f"--ckpt_path last: {exact} is finished; {hint}")
        chosen = exact
    elif is_exact or not known:
        raise ValueError(f"--ckpt_path last: there is no run named {name} in {LOGS}/ (see --run)")
    else:
        chosen = open_ones[-1] if open_ones else next(reversed(known))
    if known[chosen].status == "running" and not is_follower():
        state = known[chosen]
        raise ValueError(f"--ckpt_path last: {chosen} is still running (process {state.process} on {state.host})")
    newer = [run for run in known if known[run].turn > known[chosen].turn and run != chosen]
    return chosen, [f"{run} is {known[run].status} and not taken" for run in newer if not is_exact]


def _runs_named(name: str) -> list[Path]:
    """Return runs with this name, or with a number after it, in the order of their last starts."""
    folders = LOGS.iterdir() if LOGS.is_dir() else ()
    found = [(re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", folder.name), folder) for folder in folders]
    runs = [(state_of(path).turn, int(match[1] or 1), path) for match, path in found if match and path.is_dir()]
    return [path for _, _, path in sorted(runs)]


def checkpoint_path(folder: Path, step: int, stage: str = "") -> Path:
    """Path of the checkpoint after ``step`` optimizer steps: checkpoints/step=000123-specialised.ckpt."""
    return folder / "checkpoints" / f"step={step:06d}{'-' + stage if stage else ''}.ckpt"


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run that can be resumed, whoever wrote them, in the order of their steps."""
    return list(_whole(run, []))


def _whole(run: Path, notes: list[str]) -> Sequence[Path]:
    """Return checkpoints in the order of their steps; problems with others go into ``notes``."""
    found: list[tuple[int, bool, str, Path]] = []
    for path in _candidates(run):
        try:
            looked = contents(path)
        except ValueError as error:
            notes.append(f"{error}: not taken")
            continue
        if looked.can_resume:
            ends_stage = re.fullmatch(r"step=\d+-.+\.ckpt", path.name) is not None
            found.append((looked.step, ends_stage, path.name, path))
    return [path for *_, path in sorted(found)]


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield every ``*.ckpt`` in a folder and below; unfinished ones begin with a dot."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".ckpt" and not path.name.startswith("."):
            yield path
        elif path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _candidates(path)


def owed_scores(folder: Path) -> list[dict[str, object]]:
    """Return the answers of a run that are not graded yet, each with its step, stage and ability.

    Raises:
        ValueError: The note is damaged.
    """
    path = folder / JUDGING_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} is damaged: delete it, and those scores are not measured")
    return found
