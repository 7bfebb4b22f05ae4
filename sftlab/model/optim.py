"""Optimizers: AdamW by default, or any class by its path; the learning rate is set at every step.

    model.optimizer: SGD                                                             a class of torch.optim
    model.optimizer: {class_path: torch.optim.SGD, init_args: {momentum: 0.9}}       any class
    model.optimizer: AdamW8bit | AdamWScheduleFree | Muon                            extras, and ours

Weight decay applies to matrices, not to vectors (biases, norms). Initial learning rates are 1.0, so that the factor of
LambdaLR is the learning rate.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sftlab.bounds import within
from sftlab.config import named_object
from sftlab.plan.plan import Plan
from sftlab.plan.rate import LRSchedule

BETAS = (0.9, 0.999)
_EXTRAS = {"bitsandbytes": "bitsandbytes", "schedulefree": "schedule-free"}  # extras of sftlab
_SHORT = {
    "AdamW8bit": "bitsandbytes.optim.AdamW8bit",
    "AdamWScheduleFree": "schedulefree.AdamWScheduleFree",
    "Muon": "sftlab.model.muon.Muon",
}
_UNFIT: dict[Any, str] = {
    torch.optim.SparseAdam: "it takes sparse gradients alone, and these are dense; use Adam",
    torch.optim.LBFGS: "it computes the loss several times a step, and a plan has one",
}
_SET = {"params": "it gets the model's", "lr": "give model.learning_rate, or learning_rate in schedule.per_stage"}


def learning_rate_at(
    plan: Plan, step: int, learning_rate: float, warmup: tuple[float, int | None], schedule: LRSchedule
) -> float:
    """Return the learning rate of optimizer step ``step`` of a plan; a stage's own values override the model's.

    Args:
        plan: The plan.
        step: Optimizer step, from 0.
        learning_rate: The model's peak learning rate.
        warmup: The model's ``warmup_ratio`` and ``warmup_steps``.
        schedule: The model's learning-rate schedule.
    """
    planned = plan.stages[plan.stage_index(step)]
    stage = planned.stage
    peak = stage.learning_rate if stage.learning_rate is not None else learning_rate
    num_warmup_steps = stage.num_warmup_steps(planned.num_steps, *warmup)
    at = min(step, planned.end_step - 1) - planned.first_step
    return float(peak * (stage.lr_schedule or schedule).with_warmup(at, planned.num_steps, num_warmup_steps))


def chosen_optimizer(where: str, given: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a config's choice as ``class_path`` and ``init_args``; None, the default, stays None.

    Args:
        where: Name of the key in messages: ``model.optimizer``.
        given: A name, or class_path and init_args.

    Raises:
        ValueError: The optimizer does not exist, its package is missing, or it does not take these arguments.
    """
    if given is None:
        return None
    choice = {"class_path": given} if isinstance(given, str) else dict(given)
    if unknown := sorted(set(choice) - {"class_path", "init_args"}) or not isinstance(choice.get("class_path"), str):
        raise ValueError(f"{where}: give class_path and init_args, or a name such as SGD (got {unknown or given})")
    options = choice.get("init_args") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"{where}.init_args: give keys and values, not {options!r}")
    cls = _class(where, choice["class_path"])
    known = inspect.signature(cls).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in known.values())
    for name in options:
        if name in _SET:
            raise ValueError(f"{where}.init_args.{name}: {_SET[name]}")
        if name not in known and not takes_all:
            raise ValueError(f"{where}.init_args.{name}: {cls.__name__} takes no {name}; it takes {', '.join(known)}")
    if (decay := options.get("weight_decay")) is not None:
        within(f"{where}.init_args.weight_decay", decay, 0, 1e6)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": dict(options)}


def _class(where: str, path: str) -> type[Optimizer]:
    full = path if "." in path else _SHORT.get(path, f"torch.optim.{path}")
    try:
        found = named_object(full)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    package = full.split(".")[0]
    if found is None and package in _EXTRAS and named_object(f"{package}.__name__") is None:
        raise ValueError(f"{where}: {path} needs {package}: pip install 'sftlab[{_EXTRAS[package]}]'")
    if isinstance(found, type) and found in _UNFIT:
        raise ValueError(f"{where}: {path} is refused: {_UNFIT[found]}")
    if not (isinstance(found, type) and issubclass(found, Optimizer)) or found is Optimizer:
        left_out = (Optimizer, *_UNFIT)
        names = [name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and cls not in left_out]
        raise ValueError(f"{where}: {path} is not an optimizer; torch.optim has {', '.join(names)}, and there are "
                         f"{', '.join(_SHORT)}")  # fmt: skip
    return found


def build_optimizer(
    net: nn.Module, choice: Mapping[str, Any] | None, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    """Build the optimizer of the trained weights.

    Args:
        net: The model.
        choice: As returned by ``chosen_optimizer``; None is AdamW.
        weight_decay: Weight decay of matrices, unless the choice has its own.
        betas: Betas of the default AdamW.

    Raises:
        ValueError: It refuses its arguments or these weights, or has no weight decay although one is set.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    package = (choice or {"class_path": ""})["class_path"].split(".")[0]
    if package in _EXTRAS and any(isinstance(p, DTensor) for p in trained):
        raise ValueError(
            f"model.optimizer: those of {package} do not know sharded weights; use strategy: ddp, or another"
        )
    if choice is None:
        made: Any = torch.optim.AdamW(_groups(trained, weight_decay), lr=1.0, betas=betas, fused=True)
        # A fused optimizer would undo fp16's loss scaling, so Lightning would refuse to clip; let Lightning undo it.
        made._step_supports_amp_scaling = False
        return made
    cls: Any = _class("model.optimizer", choice["class_path"])
    options = dict(choice["init_args"])
    decay = options.pop("weight_decay", weight_decay)
    groups: list[dict[str, Any]] = _groups(trained, decay)
    if "weight_decay" not in inspect.signature(cls).parameters:
        if decay:
            raise ValueError(f"model.weight_decay: {cls.__name__} knows no weight decay; set it to 0")
        groups = [{"params": group["params"]} for group in groups]
    if hasattr(cls, "with_roles"):
        groups = cls.with_roles(groups, next(part for part in net.modules() if hasattr(part, "get_output_embeddings")))
    try:
        made = cls(groups, lr=1.0, **options)
        made._step_supports_amp_scaling = False
        return made
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model.optimizer: {cls.__name__} cannot be used so: {error}") from error


def _groups(trained: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
