"""Small runs for tests: a config on records that the test writes, and ``python -m sftlab`` in a process of its own."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import FORKING, Started
from lightning.pytorch import Callback

ROOT = Path(__file__).parents[1]
RANK_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "SFTLAB_FIRST_RANK",
    "SFTLAB_RUN_FOLDER",
)  # a Trainer leaves them
WORDS = ["apple", "river", "stone", "cloud", "house", "green", "music", "table", "light", "paper", "bread", "winter"]


def write_records(folder: Path, seed: int = 0) -> None:
    """Three files in the formats of GSM8K-RFT, Alpaca and ShareGPT."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))

    math = [{"query": words(20), "response": f"{words(25)}\n#### {i}"} for i in range(48)]
    code = [{"instruction": words(15), "input": "", "output": words(20)} for _ in range(40)]
    general = [
        {
            "id": f"c{i}_0",
            "conversations": [{"from": f, "value": words(25)} for f in ("human", "gpt") * rng.randint(1, 3)],
        }
        for i in range(50)
    ]
    (folder / "math.jsonl").write_text("".join(json.dumps(record) + "\n" for record in math))
    (folder / "code.json").write_text(json.dumps(code))
    (folder / "general.json").write_text(json.dumps(general))


def write_config(folder: Path, save_every_n_steps: int = 1, **changes: Any) -> Path:
    """A DMT run of 51 steps on those files; ``changes`` are dotted keys with ``/`` for ``.``."""
    abilities = {
        "math": {"class_path": "MathData", "init_args": {"path": str(folder / "math.jsonl"), "val_fraction": 0.1}},
        "code": {"class_path": "CodeData", "init_args": {"path": str(folder / "code.json")}},
        "general": {
            "class_path": "GeneralData",
            "init_args": {"path": str(folder / "general.json"), "val_fraction": 0.1},
        },
    }
    model = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    save = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": save_every_n_steps, "save_top_k": 1, "filename": "{step:06d}"},
    }
    log = {"class_path": "sftlab.callbacks.metrics.Metrics", "init_args": {"every_n_steps": 1}}
    config: dict[str, Any] = {
        "seed_everything": 3,
        "data": {"abilities": abilities, "template": "vicuna_short", "max_length": 128, "batch": {"examples": 8}},
        "schedule": {"class_path": "DMT", "init_args": {"k": 0.1, "epochs": 3, "val_every_n_steps": 4}},
        "model": {"config": {**model, "vocab_size": 1024, "attention_dropout": 0.1}, "tokenizer": "lab-base",
                  "attention": "sdpa", "learning_rate": 1e-2},
        "trainer": {"precision": "32-true", "accelerator": "cpu", "devices": 1, "callbacks": [save, log]},
    }  # fmt: skip
    for key, value in changes.items():
        inner = config
        *parents, last = key.split("/")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment(folder: Path) -> dict[str, str]:
    """One thread, a cache of the test's own, nothing that a Trainer left in this process's environment."""
    inherited = {key: value for key, value in os.environ.items() if key not in (*RANK_VARIABLES, "PL_GLOBAL_SEED")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**inherited, "OMP_NUM_THREADS": "1", "SFTLAB_CACHE": str(folder / "cache"), "PYTHONPATH": path}


def start(folder: Path, *arguments: Any) -> Started:
    """Start ``python -m sftlab`` in ``folder``."""
    return FORKING.start(["-m", "sftlab", *map(str, arguments)], folder, environment(folder))


def run(folder: Path, *arguments: str, wanted: int = 0) -> tuple[str, str]:
    """Run ``python -m sftlab`` to its end; what it printed on both streams."""
    done = FORKING.call(["-m", "sftlab", *map(str, arguments)], folder, environment(folder))
    assert done.returncode == wanted, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout, done.stderr


def losses(folder: Path) -> list[tuple]:
    """What metrics.jsonl says of each step, speed left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("perf/tokens_per_second", "perf/seconds_per_step", "perf/memory_gib", "stage/seconds")
    return [tuple(sorted((k, v) for k, v in line.items() if k not in timed)) for line in lines]


class Broken(Callback):
    """Ends a run with an error of its own."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise."""
        raise RuntimeError("broken on purpose")


def alike(mine: tuple, theirs: tuple) -> bool:
    """Whether two runs whose sums have another order logged the same: to 1e-5, norms of gradients to 1e-3."""
    one, other = dict(mine), dict(theirs)
    norm, other_norm = one.pop("train/gradient_norm", 0.0), other.pop("train/gradient_norm", 0.0)
    return one == pytest.approx(other, abs=1e-5, rel=1e-5) and norm == pytest.approx(other_norm, rel=1e-3)
