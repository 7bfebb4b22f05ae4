"""The identity of a run as hashes: the keys of its stages, which other runs may share, and its parts by name.

    start            = weights and model, optimizer, arithmetic, seed of random weights
    key of stage 1   = hash(start, what stage 1 trains and how)
    key of stage 2   = hash(key of stage 1, what stage 2 trains and how)

Equal keys mean equal weights: a run can resume from a checkpoint whose stages have the same keys. Equal ``full`` keys
also mean equal measurements: such a stage need not be trained again. Source code, file names and times are never part
of a key; the tables of ``settings`` say what is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftlab.data.ability import PlannedData
from sftlab.fingerprint import code_of, described, digest
from sftlab.model.backbone import content_hash
from sftlab.model.module import SFTModule
from sftlab.plan.plan import Plan, StagePlan
from sftlab.run.settings import OWN_CALLBACKS, Settings, is_without, module_settings

RULES = 1  # version of the training code: raise it when equal settings lead to different weights
REUSED_FILE = "reused.json"  # in a run's folder: the stages reused from other runs
_WHOLE = "whole"  # the decisive part of an identity; the others only explain differences
_HASHED = "hash "  # prefix of a part whose value is not shown
_LONGEST = 60  # maximum number of characters of a shown value


class StageKey(NamedTuple):
    """The key of one stage.

    Attributes:
        trained: Hash of all that determines the weights after it.
        full: Hash of that and of what is measured.
    """

    trained: str
    full: str


def stage_keys(data: PlannedData, module: SFTModule, plan: Plan, settings: Settings) -> list[StageKey]:
    """Compute the keys of the compiled stages, and of adaptive ones, whose decisions are determined."""
    measured, keys = _measured(data, settings), []
    trained = _start(data, module, plan, settings)
    for stage in plan.stages:
        if stage.stage.adaptive is not None:
            trained = digest(trained, _adaptive_content(data, module, plan, stage, _held_out(data, settings)))
        elif stage.end_step <= plan.num_compiled_steps:
            trained = digest(trained, _content(data, module, plan, stage))
        else:
            continue
        keys.append(StageKey(trained, digest(trained, measured)))
    return keys


def _held_out(data: PlannedData, settings: Settings) -> str:
    """Hash what held-out losses are measured on."""
    held_out = {name: ability.held_out_hash() for name, ability in sorted(data.abilities.items())}
    return digest(held_out, settings.measured.get("limit_val_batches"))


def _measured(data: PlannedData, settings: Settings) -> str:
    held_out = {name: ability.held_out_hash() for name, ability in sorted(data.abilities.items())}
    return digest(settings.measured, held_out, data.encoder.fingerprint() if data.encoder is not None else "")


def _start(data: PlannedData, module: SFTModule, plan: Plan, settings: Settings) -> str:
    weights = str(module.path) if plan.declared else weights_hash(module)
    has_watchers = settings.trained.get("callbacks") or settings.trained.get(OWN_CALLBACKS)
    watched = _measured(data, settings) if has_watchers else ""
    if settings.trained.get("keep_best"):
        watched = digest(watched, _held_out(data, settings))
    return digest(RULES, weights, module_settings(module), settings.seed, settings.trained, watched)


def _content(data: PlannedData, module: SFTModule, plan: Plan, planned: StagePlan) -> list[Any]:
    """Return what a stage trains, row by row, and with which learning rate and optimizer state."""
    stage = planned.stage
    span = plan.example_span(planned.first_step, planned.end_step)
    steps_S1 = plan.step_starts_S1[planned.first_step : planned.end_step + 1]
    rows_R1 = plan.row_starts_R1[steps_S1[0] : steps_S1[-1] + 1]
    example_E = plan.example_E[span]
    names_E = [plan.abilities[number] for number in plan.ability_N[example_E]]
    order = hashlib.blake2b("\n".join(names_E).encode(), digest_size=16)
    for array in (rows_R1 - rows_R1[0], steps_S1 - steps_S1[0]):
        order.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    if module.neftune_alpha:  # seeded by uids, which differ for conversations with equal tokens
        plan.uids_N[example_E].add_to(order)
    for number, name in enumerate(plan.abilities):
        mine_M = plan.index_N[example_E[plan.ability_N[example_E] == number]]
        order.update(data.abilities[name].content(mine_M))
    return [stage.name, order.hexdigest(), planned.num_steps, *_how(module, plan, planned)]


def _adaptive_content(data: PlannedData, module: SFTModule, plan: Plan, planned: StagePlan, held_out: str) -> list[Any]:
    """Return what determines an adaptive stage: its policy, the order of its examples, and its held-out data."""
    stage, examples = planned.stage, hashlib.blake2b(digest_size=16)
    assert stage.adaptive is not None
    for name in sorted(stage.fractions):
        mine_M = plan.index_N[plan.ability_N == plan.abilities.index(name)]  # ranked, so fractions are prefixes
        examples.update(name.encode() + data.abilities[name].content(mine_M))
    policy = [described(stage.adaptive), code_of(stage.adaptive), stage.decide_every_n_steps]
    drawn = [sorted(stage.fractions.items()), stage.counted_in, stage.curriculum, data.seed, str(plan.batch)]
    rows = [plan.max_length, plan.packing, held_out if stage.adaptive.needs_validation else ""]
    return [stage.name, policy, examples.hexdigest(), drawn, rows, stage.steps, *_how(module, plan, planned)]


def _how(module: SFTModule, plan: Plan, planned: StagePlan) -> list[Any]:
    """Return the learning rate of a stage, its optimizer state, its loss and its adapter."""
    stage = planned.stage
    peak = module.learning_rate if stage.learning_rate is None else stage.learning_rate
    ratio, steps = stage.warmup(module.warmup_ratio, module.warmup_steps)
    content: list[Any] = [peak, ratio if steps is None else f"{steps} steps", stage.fresh_optimizer]
    if stage.weighs_abilities:
        weights = {name: stage.loss_weight(name) for name in stage.fractions}
        content.append({name: weight / max(weights.values()) for name, weight in weights.items()})
    if module.adapter is not None:
        before = plan.stages[plan.stages.index(planned) - 1].stage.name if planned.first_step else None
        content.append(module.adapter.key(before, stage.name))
    how = {"lr_schedule": stage.lr_schedule or module.lr_schedule, "optimizer": module.optimizer_of(stage)}
    later = {name: value for name, value in how.items() if not is_without(name, value)}
    return [*content, later] if later else content


def weights_hash(module: SFTModule) -> str:
    """Hash the weights that training starts from."""
    return content_hash(module.path, module.config, module.trust_remote_code)


def run_identity(data: PlannedData, module: SFTModule, plan: Plan, settings: Settings) -> dict[str, str]:
    """Return what a run trains, as planned before the first step, and its parts by readable names."""
    keys = [key.trained for key in stage_keys(data, module, plan, settings)]
    whole = [_start(data, module, plan, settings), keys, plan.fingerprint() if plan.is_open else ""]
    values = {f"model.{name}": value for name, value in module_settings(module).items()}
    values |= {"model.learning_rate": module.learning_rate, "model.warmup_ratio": module.warmup_ratio}
    later = {name: getattr(module, name) for name in ("lr_schedule", "optimizer", "warmup_steps")}
    values |= {f"model.{name}": described(value) for name, value in later.items() if not is_without(name, value)}
    values |= {f"trainer.{name}": value for name, value in settings.trained.items()}
    return {
        _WHOLE: digest(whole),
        **data.identity(),
        "seed_everything": str(settings.seed),
        "schedule": _HASHED + digest([planned.stage for planned in plan.stages], size=8),
        "weights": _HASHED + digest(weights_hash(module), size=8),
        **{name: json.dumps(value) for name, value in values.items()},
        "plan": _HASHED + plan.fingerprint(),
    }


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe how two identities differ; empty if both train the same."""
    if was.get(_WHOLE) == now[_WHOLE]:
        return []
    names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name) and name != _WHOLE)
    return [_difference(name, was.get(name), now.get(name)) for name in names] or ["how sftlab trains"]


def differ_in_own_callbacks(was: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Return whether two identities differ only in users' callbacks that do not declare their effect."""
    names = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
    return names == {_WHOLE, f"trainer.{OWN_CALLBACKS}"}


def _difference(name: str, was: str | None, now: str | None) -> str:
    shown = [value for value in (was, now) if value and not _is_hash(value) and len(value) <= _LONGEST]
    return f"{name} ({shown[0]}, now {shown[1]})" if len(shown) == 2 else name


def _is_hash(value: str) -> bool:
    """Return whether a value is a hash, which means nothing to a reader."""
    return value.startswith(_HASHED) or re.fullmatch(r"[0-9a-f]{16,}", value) is not None


def reused_stages(folder: Path) -> list[dict[str, str]]:
    """Return the stages that a run reused from others, in order: ``stage``, ``key``, ``run``."""
    path = folder / REUSED_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
