"""Muon for matrices inside the layers, AdamW for embeddings, head and vectors, as one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix. It is meant for
hidden layers only. Updates are scaled to AdamW's size (arXiv 2502.16982), so both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """torch's Muon and AdamW over the groups of one optimizer.

    Args:
        params: Groups as returned by ``with_roles``.
        lr: Learning rate of both.
        weight_decay: Weight decay of groups without their own.
        momentum: Muon's.
        betas: AdamW's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        one = [nn.Parameter(torch.zeros(1, 1))]
        self._muon = torch.optim.Muon(one, lr=lr, weight_decay=weight_decay, momentum=momentum,
                                      adjust_lr_fn="match_rms_adamw")  # fmt: skip
        self._adamw = AdamW(one, lr=lr, weight_decay=weight_decay, betas=betas)
        super().__init__(params, {**self._adamw.defaults, **self._muon.defaults, "is_hidden": False})

    @staticmethod
    def with_roles(groups: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
        """Split groups by optimizer: ``is_hidden`` marks the matrices of a causal LM that Muon updates."""
        outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        outer |= {id(p) for p in model.get_output_embeddings().parameters()}
        split = []
        for group in groups:
            for is_hidden in (True, False):
                mine = [p for p in group["params"] if (p.ndim == 2 and id(p) not in outer) == is_hidden]
                if mine:
                    split.append({**group, "params": mine, "is_hidden": is_hidden})
        return split

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one update with both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner, is_hidden in ((self._muon, True), (self._adamw, False)):
            inner.param_groups = [group for group in self.param_groups if group["is_hidden"] == is_hidden]
            inner.state = self.state
            inner.step()
        return loss
