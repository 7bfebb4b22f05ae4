"""The least that counts as a checkpoint of ``fit``, for tests that need its name and step alone."""

from __future__ import annotations

from pathlib import Path

import torch


def write_checkpoint(path: Path, step: int = 1) -> Path:
    """Write a checkpoint file with one weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"net.model.w": torch.zeros(2)}
    entries = {"global_step": step, "state_dict": state, "optimizer_states": [{}], "loops": {}, "sftlab": {}}
    torch.save(entries, path)
    return path
