"""Killed in an asynchronous save, a run goes on where it was, on other numbers of processes and on several nodes.

It goes on between two points of the curves, so that every process takes up its part of the sums that they are made of.
"""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from fitting import environment, run, write_config, write_records
from forked import FORKING, Started

from sftlab.files import read_jsonl
from sftlab.processes import free_port
from sftlab.run.folder import complete_checkpoints

SHARDED = ["--trainer.strategy", "fsdp2", "--trainer.devices"]
STEPS, EVERY = 9, 5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A config of some steps, with asynchronous checkpoints, and its run on one process to the end."""
    folder = tmp_path_factory.mktemp("nodes")
    write_records(folder)
    path = write_config(
        folder,
        **{"schedule": {"class_path": "MultiTask", "init_args": {"steps": STEPS}}, "model/learning_rate": 1e-3,
           "model/config/attention_dropout": 0.0, "trainer/callbacks": [
               {"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 2, "asynchronous": True}},
               {"class_path": "Metrics", "init_args": {"every_n_steps": EVERY}}]},
    )  # fmt: skip
    slow = {"trainer": {"callbacks": [{"class_path": "slow_writes.SlowWrites"}]}}
    (folder / "slow.yaml").write_text(yaml.safe_dump(slow))
    run(folder, "fit", "--config", path, "--run", "whole")
    return folder


def wait_for(*paths: Path, processes: list[Started]) -> None:
    """Until these are there."""
    until = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)


def steps_of(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [line for line in read_jsonl(path) if "train/loss" in line] if path.is_file() else []


def wait_for_step(folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not any(line["step"] >= step for line in steps_of(folder)):
        assert time.monotonic() < until
        time.sleep(0.02)


def kill(folder: Path) -> None:
    """Every process of a run, at once."""
    for path in folder.glob("rank-*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def nodes(inputs: Path, *words: str) -> list[Started]:
    """Two 'nodes' of one process each, launched one by one."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1"))}
    words = ("-m", "sftlab", "fit", "--config", "small.yaml", *words, "--trainer.num_nodes", "2", *SHARDED, "1")
    return [
        FORKING.start(list(words), inputs, {**environment(inputs), **together, "NODE_RANK": str(rank)})
        for rank in range(2)
    ]


def assert_as_uninterrupted(inputs: Path, name: str) -> None:
    mine, theirs = (steps_of(inputs / "lightning_logs" / one) for one in (name, "whole"))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [EVERY, STEPS]
    for one, other in zip(mine, theirs, strict=True):
        losses, wanted = ({k: v for k, v in line.items() if k.startswith("train/loss")} for line in (one, other))
        assert losses == pytest.approx(wanted, rel=1e-6) and len(losses) == 4, "all abilities together and each"


@pytest.mark.slow
def test_a_node_that_dies_in_an_asynchronous_save_and_both_start_again(inputs):
    folder = inputs / "lightning_logs" / "nodes"
    both = nodes(inputs, "--config", "slow.yaml", "--run", "nodes")
    wait_for(folder / "waiting-0", folder / "waiting-1", processes=both)
    wait_for_step(folder, EVERY)  # training goes on meanwhile
    both[1].send_signal(signal.SIGKILL)
    (folder / "go").touch()
    _, err = both[0].communicate(timeout=60)
    assert both[0].returncode == 1 and "another process of this run has ended" in err
    assert [path.name for path in complete_checkpoints(folder)] == ["step=000002.ckpt"], err[-2000:]
    shutil.copytree(folder, folder.with_name("fewer"))
    for node in nodes(inputs, "--run", "nodes", "--ckpt_path", "last"):
        out, err = node.communicate(timeout=120)
        assert node.returncode == 0, err[-3000:]
    assert_as_uninterrupted(inputs, "nodes")
    # And what two processes left goes on on one.
    out, _ = run(inputs, "fit", "--config", "small.yaml", "--run", "fewer", "--ckpt_path", "last", *SHARDED, "1")
    assert "Resumed after step 2" in out
    assert_as_uninterrupted(inputs, "fewer")


@pytest.mark.slow
def test_one_process_killed_in_an_asynchronous_save_goes_on_as_two(inputs):
    folder = inputs / "lightning_logs" / "more"
    words = ["-m", "sftlab", "fit", "--config", "small.yaml", "--config", "slow.yaml", "--run", "more", *SHARDED, "1"]
    process = FORKING.start(words, inputs, environment(inputs))
    wait_for(folder / "waiting-0", processes=[process])
    wait_for_step(folder, EVERY)
    kill(folder)
    process.communicate()
    assert [path.name for path in complete_checkpoints(folder)] == ["step=000002.ckpt"]
    out, _ = run(inputs, "fit", "--config", "small.yaml", "--run", "more", "--ckpt_path", "last", *SHARDED, "2")
    assert "Resumed after step 2" in out
    assert_as_uninterrupted(inputs, "more")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step=000008.ckpt", "step=000009-all.ckpt"}
