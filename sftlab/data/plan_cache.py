"""The cache of plans: a schedule over millions of examples is compiled once and found again at the next start.

    plans/<key>.plan    a line with the hash of all that follows
                        a line of JSON: what the arrays are, and the stages
                        the arrays: the examples of each ability in their order, and of each segment its rows and steps

An entry is named by everything that determines a plan: the files of examples, which of them are chosen, stages,
policies, batch, seed, and the versions of our own rules and of numpy, which shuffles. Other settings of a stage (its
learning rate, its optimizer) are not part of it. If an entry cannot be read or written, a message says so and the plan
is compiled. The most recently used entries are kept, up to a total size.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from sftlab.data.ability import PlannedData
from sftlab.files import cache_root, explain, whole_file
from sftlab.fingerprint import code_of, digest
from sftlab.plan import compile as compiling
from sftlab.plan.adapt import Adaptation, compile_schedule
from sftlab.plan.compile import Compiler
from sftlab.plan.plan import Plan, Segment, StagePlan
from sftlab.plan.stage import Stage
from sftlab.screen import complain

MIN_EXAMPLES = 1_000_000  # smaller plans compile in the second or two that a start takes anyway
MAX_BYTES = 2 << 30  # of all entries together
_BESIDE = frozenset(
    ("learning_rate", "warmup_ratio", "warmup_steps", "lr_schedule", "optimizer", "fresh_optimizer", "loss_weights")
)
_OF_STAGE = ("first_step", "num_steps", "num_epochs", "selected", "per_epoch", "requested", "counted_in")


class _Damaged(Exception):
    """A file whose content is not what was written."""


def planned(data: PlannedData, stages: Sequence[Stage]) -> tuple[Plan, Adaptation | None]:
    """Return the plan of some stages over loaded data, and the state of its last stage if that is adaptive.

    A large plan is read from the cache, or compiled and cached; ``data.plan_note`` says which.

    Raises:
        ValueError: The stages do not fit the data.
    """
    data.plan_note = ""
    if not _is_worth_keeping(data, stages):
        return _compiled(data, stages)
    path = cache_root() / "plans" / f"{_key(data, stages)}.plan"
    if (plan := _found(path, data, stages)) is not None:
        return plan, None
    with ExitStack() as stack:
        is_open = _lock(stack, path)  # ranks and runs that need the same plan wait for the first one to compile it
        if is_open and (plan := _found(path, data, stages, tell=True)) is not None:
            return plan, None
        started = time.monotonic()
        plan, adaptation = _compiled(data, stages)
        took = f"The plan was compiled in {time.monotonic() - started:.1f} s"
        is_kept = is_open and _keep(path, plan)
        data.plan_note = f"{took}, and is kept in the cache: {path}." if is_kept else f"{took}."
    return plan, adaptation


def _compiled(data: PlannedData, stages: Sequence[Stage]) -> tuple[Plan, Adaptation | None]:
    compiler = Compiler(data.pools(), data.policy, data.batch, data.max_length, data.seed, data.packing)
    adaptation = compile_schedule(compiler, stages)
    return compiler.plan, adaptation


def _is_worth_keeping(data: PlannedData, stages: Sequence[Stage]) -> bool:
    """Return whether a plan is large, and fully determined before training by existing examples."""
    abilities = data.abilities.values()
    is_fixed = not any(ability.is_declared for ability in abilities) and all(stage.adaptive is None for stage in stages)
    return is_fixed and sum(len(ability.examples) for ability in abilities) >= MIN_EXAMPLES


def _key(data: PlannedData, stages: Sequence[Stage]) -> str:
    """Hash everything that determines a plan."""
    abilities = sorted(data.abilities.values(), key=lambda ability: ability.name)
    policies, classes = [data.policy, *(stage.policy for stage in stages)], [type(data), *map(type, abilities)]
    named = [field.name for field in fields(Stage) if field.name not in _BESIDE]
    return digest(
        [compiling.RULES, np.__version__],
        [[_hashed(part) for part in ability.pool_key()] for ability in abilities],
        [data.batch, data.max_length, data.seed, data.packing],
        [_in_order(policy) for policy in policies],
        [[[name, _in_order(getattr(stage, name))] for name in named] for stage in stages],
        [classes, code_of([*classes, *policies])],
    )


def _hashed(part: object) -> object:
    return _blake(part.tobytes()).hexdigest() if isinstance(part, np.ndarray) else part


def _in_order(value: Any) -> list[Any]:
    """Return a value with the order of all its dictionaries, which sums and blocks depend on."""
    held = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return [value, [[name, [*item] if isinstance(item, dict) else None] for name, item in held.items()]]


def _lock(stack: ExitStack, path: Path) -> bool:
    """Become the only one to compile and write an entry; return False, with a message, if the cache is not writable."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(path.with_suffix(".lock")))  # the kernel releases it when its holder dies
    except OSError as error:
        complain(f"cache: {explain(error)}. The plan is compiled, and not kept")
        return False
    return True


def _found(path: Path, data: PlannedData, stages: Sequence[Stage], tell: bool = False) -> Plan | None:
    """Return the plan of an entry; None if there is none, or if it cannot be read, which is reported."""
    try:
        with path.open("rb") as file:
            head, arrays = _read(file)
            with suppress(OSError):  # a cache that is read-only for us can still be read
                os.utime(path)  # mark as recently used
            order = (data.abilities[name].pool_of(next(arrays), count) for name, count in head["populations"].items())
            compiler = Compiler([*order], data.policy, data.batch, data.max_length, data.seed, data.packing)
            for stage, about in zip(stages, head["stages"], strict=True):
                compiler.plan.append(Segment(StagePlan(stage, **about), next(arrays), next(arrays), next(arrays)))
    except FileNotFoundError:
        return None
    except (OSError, _Damaged) as error:
        if tell:
            said = explain(error) if isinstance(error, OSError) else f"{path} is damaged ({error})"
            complain(f"cache: {said}; the plan is compiled again")
        return None
    compiler.plan.is_open = False
    data.plan_note = f"The plan was found in the cache: {path}."
    return compiler.plan


def _read(file: BufferedReader) -> tuple[dict[str, Any], Iterator[np.ndarray]]:
    """Read the head of an entry, and its arrays one by one.

    Raises:
        _Damaged: The content is not what was written.
    """
    written = file.readline().strip().decode("ascii", "replace")
    start = file.tell()
    if hashlib.file_digest(file, _blake).hexdigest() != written:
        raise _Damaged("it is not what was written")
    file.seek(start)
    head = json.loads(file.readline())
    return head, (np.fromfile(file, kind, size) for kind, size in head["arrays"])


def _keep(path: Path, plan: Plan) -> bool:
    """Write an entry and remove the least recently used ones; return False, with a message, if that fails."""
    counts = [np.count_nonzero(plan.ability_N == number) for number in range(len(plan.abilities))]
    arrays = np.split(plan.index_N, np.cumsum(counts)[:-1])
    for segment in plan.segments:
        arrays += [segment.example_E, segment.row_starts_R1, segment.step_starts_S1]
    stages = [{name: getattr(segment.planned, name) for name in _OF_STAGE} for segment in plan.segments]
    about = {"populations": plan.populations, "stages": stages}
    head = json.dumps({**about, "arrays": [(array.dtype.name, len(array)) for array in arrays]}, default=_number)
    hashed = _blake(f"{head}\n".encode())
    for array in arrays:
        hashed.update(np.ascontiguousarray(array))
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(f"{hashed.hexdigest()}\n{head}\n".encode())
            for array in arrays:
                array.tofile(file)
        _make_room(path)
    except OSError as error:
        complain(f"cache: {explain(error)}. The plan is not kept")
        return False
    return True


def _make_room(newest: Path) -> None:
    left = MAX_BYTES
    others = [path for path in newest.parent.glob("*.plan") if path != newest]
    for path in [newest, *sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)]:
        left -= path.stat().st_size
        if left < 0 and path != newest:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def _blake(start: bytes = b"") -> Any:
    return hashlib.blake2b(start, digest_size=16)


def _number(value: Any) -> Any:
    """Return a numpy number as JSON represents it."""
    return value.item()
