"""The loss of the base model on every example, measured once before training: the order of easy-to-hard curricula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sftlab.data.ability import AbilityData, PlannedData
from sftlab.evaluate.local import LocalModel
from sftlab.files import cache_root, whole_file
from sftlab.fingerprint import digest
from sftlab.lab.bases import LAB_SIZES
from sftlab.model.backbone import build_backbone
from sftlab.model.module import SFTModule
from sftlab.run.identity import weights_hash
from sftlab.screen import complain, show

RULES = 1  # version of the measurement: raise it when the same base and examples would give other losses
_DECIMALS = 4  # digits on which machines agree; equal losses stay shuffled
_BATCH = 16  # examples side by side


def measure_base(data: PlannedData, module: SFTModule) -> None:
    """Set the base's mean loss per supervised token of every example, taken from the cache if it is there.

    Raises:
        ValueError: The weights are random, or an ability only declares a count.
    """
    if module.path is None or module.config is not None or module.path in LAB_SIZES:
        raise ValueError(
            "curriculum: easy_first and hard_first go by the loss of the base, and random weights know nothing: give "
            "model.path a pretrained model (lab:base is one), or take short_first"
        )
    for ability in data.abilities.values():
        if ability.is_declared:
            raise ValueError(
                f"data.abilities.{ability.name}: path is null, only a count is declared: easy_first and hard_first "
                "need the examples"
            )
    model: LocalModel | None = None
    for ability in data.abilities.values():
        path = cache_root() / "base_losses" / f"{_key(ability, module)}.npy"
        if (kept_I := _kept(path, ability)) is None:
            model = model or _base(data, module)
            kept_I = _measure(ability, model, path)
        ability.base_losses_I = kept_I


def _kept(path: Path, ability: AbilityData) -> np.ndarray | None:
    """Return the losses in the cache; None if there are none, or if the file is damaged, which is reported."""
    try:
        losses_I = np.load(path, allow_pickle=False)
        if losses_I.shape == (len(ability.examples),) and np.isfinite(losses_I).all():
            return np.asarray(losses_I, np.float64)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, TypeError):
        pass
    complain(f"cache: {path} is damaged; the base's losses on {ability.name} are measured again")
    return None


def _key(ability: AbilityData, module: SFTModule) -> str:
    return digest(RULES, weights_hash(module), ability.examples.content_NB)


def _base(data: PlannedData, module: SFTModule) -> LocalModel:
    assert data.encoder is not None, "the data is loaded"
    with torch.random.fork_rng():
        backbone = build_backbone(module.path, None, None, trust_remote_code=module.trust_remote_code)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return LocalModel(backbone.to(device), data.encoder, _BATCH)


def _measure(ability: AbilityData, model: LocalModel, path: Path) -> np.ndarray:
    """Measure an ability on one process per machine while the others wait."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (kept_I := _kept(path, ability)) is not None:
            return kept_I
        examples = ability.examples
        show(f"Measuring the base's loss on {len(examples):,} examples of {ability.name}, once")
        with torch.no_grad():
            sums = model.answer_nlls(examples, range(len(examples)))
        losses_I = np.round(np.array(sums) / np.maximum(1, np.asarray(examples.supervised_N)), _DECIMALS)
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, losses_I)
    return losses_I
