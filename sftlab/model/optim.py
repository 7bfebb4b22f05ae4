"""AdamW, and a learning rate that is a pure function of the optimizer step: warm-up and cosine in each stage."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from sftlab.plan.plan import Plan


def warmup_cosine(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Factor of the peak learning rate at a step of one stage, 0 < factor <= 1.

    floor(warmup_ratio x num_steps) steps rise linearly, starting above 0 so that no step is wasted; the rest falls
    along half a cosine. A stage of three steps has no warm-up at 3 %.
    """
    warmup = int(warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def learning_rate_at(plan: Plan, step: int, learning_rate: float, warmup_ratio: float) -> float:
    """The learning rate of optimizer step ``step`` of a plan; a stage's own values override the two defaults."""
    planned = plan.stages[plan.stage_index(step)]
    stage = planned.stage
    peak = stage.learning_rate if stage.learning_rate is not None else learning_rate
    ratio = stage.warmup_ratio if stage.warmup_ratio is not None else warmup_ratio
    return float(peak * warmup_cosine(min(step, planned.end_step - 1) - planned.first_step, planned.num_steps, ratio))


def adamw(
    parameters: Iterable[torch.nn.Parameter], weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW whose learning rate is 1.0, so that a schedule's factor is the learning rate; vectors are not decayed."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=betas, fused=True)
    # A fused optimizer can undo fp16's loss scaling itself, and Lightning then refuses to clip; let Lightning undo it.
    optimizer._step_supports_amp_scaling = False
    return optimizer
