"""One of two processes that train a small model with compiled layers, by DDP and by FSDP2, in one start.

usage: compiled_runs.py FOLDER; rank 0 writes FOLDER/NAME/metrics.jsonl of each way, and FOLDER/graphs.json: graphs
and breaks in them, by way.
"""

import json
import os
import sys
from pathlib import Path

import torch
from small import MODEL, small_fit, small_mixture
from torch._dynamo.utils import counters

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import Sequential
from sftlab.model import compiled
from sftlab.model.parallel import register_strategies
from sftlab.run.folder import complete_checkpoints

MODEL_OPTIONS = {"config": {**MODEL, "num_hidden_layers": 1}}


def main(folder: Path) -> None:
    """Train in every way: plainly, compiled, compiled and cut after a stage."""
    compiled._BACKEND = {"backend": "eager"}  # traced, and run one operation at a time: kernels take minutes
    register_strategies()
    graphs = {}

    def run(name: str, strategy: str, compile: bool, steps: int = -1, ckpt_path: Path | None = None) -> None:
        torch._dynamo.reset()
        counters.clear()
        small_fit(
            folder / name, Sequential(steps=1, val_every_n_steps=1), small_mixture(folder), RunCheckpoint(1),
            strategy=strategy, devices=2, accumulate_grad_batches=2, max_steps=steps, ckpt_path=ckpt_path,
            enable_checkpointing=True, model_options={**MODEL_OPTIONS, "compile": compile},
        )  # fmt: skip
        graphs[name] = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    run("plain", "ddp", False)
    run("ddp", "ddp", True)
    run("fsdp2", "fsdp2", True, 2)
    run("fsdp2", "fsdp2", True, -1, complete_checkpoints(folder / "fsdp2")[-1])
    if os.environ["LOCAL_RANK"] == "0":
        (folder / "graphs.json").write_text(json.dumps(graphs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
