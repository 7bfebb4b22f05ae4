"""One of several processes that train a small model under FSDP2 in many ways, one after the other, in one start.

usage: sharded_runs.py FOLDER WORLD; rank 0 writes FOLDER/NAME/{metrics.jsonl,checkpoints,stages} of each way and
FOLDER/calls.json: how often gradients were reduced, by way and kind.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch import Callback
from small import MODEL, small_fit, small_mixture
from torch import distributed

from sftlab.callbacks.schedule import MultiTask
from sftlab.model.parallel import FSDP2Strategy
from sftlab.model.snapshot import changing, read_snapshot, write_snapshot
from sftlab.run.folder import complete_checkpoints

STEPS = 4
CALLS = Counter()


class Counted(Callback):
    """Counts what goes between processes from a step's first micro-batch until its optimizer step."""

    changes_training = False

    def __init__(self):
        self.calls = Counter()

    def on_train_batch_start(self, trainer, *_):
        CALLS.clear()

    def on_before_zero_grad(self, *_):
        self.calls.update(CALLS)
        CALLS.clear()

    def on_train_batch_end(self, *_):
        self.calls.update(CALLS)


def count(kind, name):
    """Let a collective count its calls."""
    call = getattr(distributed, name)

    def counted(*args, **kwargs):
        CALLS[kind] += 1
        return call(*args, **kwargs)

    setattr(distributed, name, counted)


def there_and_back(net, place, rank):
    """A snapshot comes back, also for a process that finds none of its own and takes the others' apart."""
    before = {name: value.clone() for name, value in changing(net).items()}
    write_snapshot(net, place, rank)
    distributed.barrier()
    for number in (rank, 99):
        with torch.no_grad():
            for value in changing(net).values():
                value.zero_()
        read_snapshot(net, place, number)
        assert all(torch.equal(value, before[name]) for name, value in changing(net).items())


def main(folder: Path, world: int) -> None:
    MODEL["attention_dropout"] = 0.0
    count(
        "divided", "reduce_scatter_single" if hasattr(distributed, "reduce_scatter_single") else "reduce_scatter_tensor"
    )
    count("exchanged", "all_reduce")
    common = {"devices": world, "precision": "32-true"}
    calls = {}

    def fit(name, ckpt_path=None, max_steps=-1, model_options=None, **options):
        data, counted = small_mixture(folder), Counted()
        model = {"path": str(folder / "base"), "config": None, **(model_options or {})}
        module, _ = small_fit(folder / name, MultiTask(steps=STEPS), data, counted, model_options=model,
                  ckpt_path=ckpt_path, strategy=FSDP2Strategy(**options), accumulate_grad_batches=2,
                  max_steps=max_steps, **common)  # fmt: skip
        calls[name] = dict(counted.calls)
        distributed.barrier()
        return module

    groups = {"shard_size": world // 2}
    fit("plain")
    fit("groups", **groups)
    fit("once", model_options={"activation_checkpointing": "selective"}, reduce_once=True, cpu_offload=True)
    divided = fit("tensor", tensor_parallel_size=2)
    otherwise = {"attention": "per_document", "activation_checkpointing": "selective"}
    both = {"tensor_parallel_size": 2, "reduce_once": True, "cpu_offload": True}
    fit("resumed", max_steps=1)
    for steps, model, options in ((2, None, groups), (3, otherwise, both), (-1, None, {"shard_size": 1})):
        fit("resumed", complete_checkpoints(folder / "resumed")[-1], steps, model, **options)
    there_and_back(divided.net, folder / "snapshot", torch.distributed.get_rank())
    if distributed.get_rank() == 0:
        (folder / "calls.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert "LOCAL_RANK" in os.environ
    main(Path(sys.argv[1]), int(sys.argv[2]))
