"""Asked to end, a run saves, says how to go on, exits with the signal's status, and ends in the same weights."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fitting import environment, losses, run, start, write_config, write_records
from forked import FORKING, Started
from safetensors.torch import load_file

from sftlab.callbacks import signals
from sftlab.run.folder import state_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Inputs, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("signals")
    write_records(folder)
    run(folder, "fit", "--config", write_config(folder), "--run", "whole")
    return folder, folder / "lightning_logs" / "whole"


def same_weights(mine: Path, theirs: Path) -> bool:
    pair = [load_file(folder / "stages" / "1-general" / "model.safetensors") for folder in (mine, theirs)]
    return pair[0].keys() == pair[1].keys() and all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def wait_for(process: Started, path: Path, lines: int) -> None:
    """Until a file has some lines, or the process ended."""
    while process.poll() is None and not (path.is_file() and path.read_text().count("\n") >= lines):
        time.sleep(0.02)


def test_a_rank_whose_end_waits_for_the_others_ends_when_all_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    asked = signals.Signals.__new__(signals.Signals)
    asked.trainer = SimpleNamespace(is_global_zero=True, world_size=2, global_step=3)
    asked._folder, asked.saved = tmp_path / "r", tmp_path / "step=000003.ckpt"
    if not (child := os.fork()):
        with suppress(signals.Stopped):
            asked._stop(signal.SIGTERM)
        time.sleep(0.5)
        asked.saved.touch()  # it is not cut short while that is being written
        time.sleep(30)
        os._exit(1)
    start = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert 0.5 < time.monotonic() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_and_goes_on_to_the_same_weights(whole, signum):
    inputs, folder = whole
    name = signum.name
    arguments = ["fit", "--config", inputs / "small.yaml", "--run", name]
    process = start(inputs, *arguments)
    wait_for(process, inputs / "lightning_logs" / name / "metrics.jsonl", 7)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum and "Traceback" not in err
    assert f"Interrupted by {name}: stopped after step " in err and "--ckpt_path last" in err
    assert state_of(inputs / "lightning_logs" / name).status == "stopped"
    out, _ = run(inputs, *arguments, "--ckpt_path", "last")
    steps = int(err.split("stopped after step ")[1].split(",")[0])
    assert f"Resumed after step {steps}" in out, "not a step is lost"
    mine = inputs / "lightning_logs" / name
    assert losses(mine) == losses(folder) and same_weights(mine, folder)


@pytest.mark.slow
def test_all_ranks_end_together_though_one_was_asked(tmp_path):
    write_records(tmp_path)
    shorter = {"model/config/attention_dropout": 0.0, "schedule/init_args/epochs": 1}
    config = write_config(tmp_path, save_every_n_steps=4, **shorter)
    arguments = ["fit", "--config", config, "--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    run(tmp_path, *arguments, "--run", "whole")
    process = start(tmp_path, *arguments, "--run", "asked")
    wait_for(process, tmp_path / "lightning_logs" / "asked" / "metrics.jsonl", 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in err and err.count("Interrupted by SIGTERM") == 1
    run(tmp_path, *arguments, "--run", "asked", "--ckpt_path", "last")
    logs = tmp_path / "lightning_logs"
    assert same_weights(logs / "asked", logs / "whole")


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(whole):
    inputs, _ = whole
    process = start(inputs, "fit", "--config", inputs / "small.yaml", "--run", "twice")
    wait_for(process, inputs / "lightning_logs" / "twice" / "metrics.jsonl", 3)
    process.send_signal(signal.SIGSTOP)  # so that both are there before a step can end
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    for _ in range(50):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in err


@pytest.mark.slow
def test_slurm_requeues_it_and_it_goes_on_by_itself(whole):
    inputs, folder = whole
    (inputs / "bin").mkdir()
    (inputs / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {inputs}/requeued\n")
    (inputs / "bin" / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1",
             "PATH": f"{inputs}/bin:{os.environ['PATH']}"}  # fmt: skip
    words = ["-m", "sftlab", "fit", "--config", str(inputs / "small.yaml"), "--run", "slurm"]
    process = FORKING.start(words, inputs, {**environment(inputs), **slurm})
    mine = inputs / "lightning_logs" / "slurm"
    wait_for(process, mine / "metrics.jsonl", 7)
    process.send_signal(signal.SIGUSR1)
    wait_for(process, inputs / "requeued", 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (mine / "hpc_ckpt_1.ckpt").is_file() and "requeue 7" in (inputs / "requeued").read_text()
    again = {**environment(inputs), **slurm, "SLURM_RESTART_COUNT": "1"}
    done = FORKING.call(words, inputs, again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Resumed after step" in done.stdout
    assert losses(mine) == losses(folder) and same_weights(mine, folder)
