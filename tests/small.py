"""A small run from plain Python, for the tests of callbacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from sftlab.callbacks.metrics import JsonlLogger, Metrics
from sftlab.callbacks.schedule import StageSchedule
from sftlab.data.ability import CodeData, GeneralData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.model.module import SFTModule

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MODEL = {**SHAPE, "vocab_size": 1024, "attention_dropout": 0.1}


def small_mixture(folder: Path, **options: Any) -> MixtureData:
    """Three abilities on the files of ``fitting.write_records``."""
    abilities = {
        "math": MathData(str(folder / "math.jsonl"), val_fraction=0.2),
        "code": CodeData(str(folder / "code.json")),
        "general": GeneralData(str(folder / "general.json"), val_fraction=0.2),
    }
    settings: dict[str, Any] = {"template": "vicuna_short", "max_length": 128, "batch": {"examples": 16}, "seed": 5}
    return MixtureData(abilities, **{**settings, **options})


class Killed(Callback):
    """Dies when a step is done, before anything is saved of it."""

    changes_training = False

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def small_fit(
    folder: Path,
    schedule: StageSchedule,
    data: MixtureData,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    log_every: int = 1,
    model_options: Mapping[str, Any] | None = None,
    **trainer: Any,
) -> tuple[SFTModule, list[dict[str, Any]]]:
    """Train a LLaMA of two layers with dropout; the module and the lines of metrics.jsonl."""
    torch.manual_seed(1)
    drawn = {"path": None, "config": MODEL, "tokenizer": "lab-base"}
    model = SFTModule(**{**drawn, "attention": "sdpa", "learning_rate": 1e-2, **(model_options or {})})
    settings = {"logger": JsonlLogger(str(folder)), "accelerator": "cpu", "devices": 1, "enable_progress_bar": False,
                "enable_model_summary": False, "num_sanity_val_steps": 0, "enable_checkpointing": False}  # fmt: skip
    both = [*callbacks, Metrics(every_n_steps=log_every), schedule]
    Trainer(callbacks=both, default_root_dir=folder, **{**settings, **trainer}).fit(
        model, datamodule=data, ckpt_path=ckpt_path
    )
    return model, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the steps logged, speed left out."""
    timed = ("perf/tokens_per_second", "perf/seconds_per_step", "perf/memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if "train/loss" in line]
