"""What a run is, as hashes: its parts, which a resume must share, and its stages, which other runs may share.

    start            = model, weights, optimizer settings, seed of the initial weights
    key of stage 1   = hash(start, what stage 1 trains and how, what is measured)
    key of stage 2   = hash(key of stage 1, what stage 2 trains and how, what is measured)

Equal keys, equal weights and equal validation losses: a stage of that key need not be trained again. Ranks, nodes and
micro-batches are left out, because they change a result only by rounding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftlab.data.ability import PlannedData
from sftlab.model.backbone import load_config, resolve_path
from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan
from sftlab.plan.pool import seed_from
from sftlab.plan.stage import Stage

REUSED_FILE = "reused.json"  # in a run's folder: the stages that it took over from other runs


def run_identity(data: PlannedData, module: SFTModule, stages: Sequence[Stage], plan: Plan) -> dict[str, str]:
    """Hashes of the parts of a run, by names that people know them by."""
    return {
        **data.identity(),
        "schedule": f"{seed_from(repr(list(stages))):x}",
        "model and optimizer": f"{seed_from(repr(module.settings())):x}",
        "plan": plan.fingerprint(),
    }


def stage_keys(data: PlannedData, module: SFTModule, plan: Plan) -> list[str]:
    """The key of each stage that is compiled to its end: what determines the model after it, and what is measured."""
    measured = {name: ability.held_out_hash() for name, ability in sorted(data.abilities.items())}
    weights = str(module.path) if plan.declared else weights_hash(module)
    key = _hash(repr(module.settings()), weights, os.environ.get("PL_GLOBAL_SEED", "0"), measured)
    keys = []
    for stage in (stage for stage in plan.stages if stage.end_step <= plan.num_compiled_steps):
        key = _hash(key, _content(data, plan, stage))
        keys.append(key)
    return keys


def _content(data: PlannedData, plan: Plan, planned: StagePlan) -> list[Any]:
    """What a stage trains, row by row, and with which learning rate and optimizer state."""
    stage = planned.stage
    span = plan.example_span(planned.first_step, planned.end_step)
    steps_S1 = plan.step_starts_S1[planned.first_step : planned.end_step + 1]
    rows_R1 = plan.row_starts_R1[steps_S1[0] : steps_S1[-1] + 1]
    example_E = plan.example_E[span]
    names_E = [plan.abilities[number] for number in plan.ability_N[example_E]]
    digest = hashlib.blake2b("\n".join(names_E).encode(), digest_size=16)
    for number, name in enumerate(plan.abilities):
        mine_M = plan.index_N[example_E[plan.ability_N[example_E] == number]]
        digest.update(data.abilities[name].content(mine_M))
    for array in (rows_R1 - rows_R1[0], steps_S1 - steps_S1[0]):
        digest.update(array.astype("int64").tobytes())
    options = [stage.name, stage.learning_rate, stage.warmup_ratio, stage.fresh_optimizer]
    return [digest.hexdigest(), options]


def weights_hash(module: SFTModule) -> str:
    """Hash of the weights that training starts from: of a folder its files, of a hub id its commit."""
    if module.path is None or module.config is not None:
        return ""
    folder = Path(resolve_path(module.path))
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"])
        return _hash(*(_file_hash(path, path.stat().st_mtime_ns) for path in files if path.is_file()))
    commit = getattr(load_config(module.path, None, module.trust_remote_code), "_commit_hash", None)
    return f"{module.path}@{commit}"


@functools.cache
def _file_hash(path: Path, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def reused_stages(folder: Path) -> list[dict[str, str]]:
    """The stages that a run took over from others, in order: ``stage``, ``key``, ``run``."""
    path = folder / REUSED_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
