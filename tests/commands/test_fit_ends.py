"""How ``fit`` ends when something else ends: Ctrl-C before training, a data worker, another rank, the first rank."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from fitting import ROOT
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from sftlab.__main__ import main
from sftlab.files import is_alive
from sftlab.run.launcher import RankLauncher, watch_ranks


class Interrupted(Callback):
    """Ctrl-C while the run is set up, where Lightning would end it with status 1 and no word."""

    def setup(self, trainer, pl_module, stage):
        raise KeyboardInterrupt


@pytest.fixture
def signals():
    """As they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ends(monkeypatch, signals):
    """``fit`` that trains by a function; its exit status."""

    def fit(train):
        fake = types.ModuleType("sftlab.cli")
        fake.LabCLI, fake.freeze_imports = train, lambda: None
        monkeypatch.setitem(sys.modules, "sftlab.cli", fake)
        return main(["fit"])

    return fit


def raises(error):
    def train():
        raise error

    return train


def test_interrupted_before_training_it_says_so_with_the_signals_status(ends, capsys, tmp_path):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[Interrupted()], default_root_dir=tmp_path, enable_model_summary=False, **options)
    assert ends(lambda: trainer.fit(BoringModel())) == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "DataLoader worker (pid 7)"),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "(pid(s) 7, 8) exited unexpectedly: was it",
        ),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "another process of this run"),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "another process of this run"),
        (
            torch.distributed.DistNetworkError("failed to listen. port: 5053, useIpv6: false, name: EADDRINUSE"),
            "port 5053, over which this run's processes would find each other, is in use",
        ),
    ],
)
def test_the_end_of_a_worker_or_of_another_rank_is_one_message(ends, capsys, monkeypatch, error, said):
    assert ends(raises(error)) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and said in line and line.endswith("--ckpt_path last resumes")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="1"):
        ends(raises(error))
    assert capsys.readouterr().err == ""


def test_any_other_error_stays_what_it_is(ends):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ends(raises(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


ENDED = """
import atexit, os, signal, sys, time, types
from sftlab.__main__ import console_script
where, number = sys.argv[1], int(sys.argv[2])
def signal_comes():
    os.kill(os.getpid(), number)
    for _ in range(100):
        pass
class Deaf:
    def __del__(self):
        signal_comes()
def main(words):
    if where == "atexit":
        atexit.register(signal_comes)
    else:
        Deaf()
        time.sleep(30)
    return 0
sys.modules["sftlab.commands.fit"] = types.SimpleNamespace(main=main)
sys.argv = ["sftlab", "fit"]
console_script()
"""


@pytest.mark.parametrize("where", ["__del__", "atexit"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_python_passes_over_exceptions_ends_the_command_too(where, number):
    words = [sys.executable, "-c", ENDED, where, str(int(number))]
    start = time.monotonic()
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert time.monotonic() - start < 20
    assert done.returncode == (-number if where == "atexit" else 128 + number)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


RANK = """
import sys, time, types
cli = types.ModuleType("sftlab.cli")
def train():
    print("trains", flush=True)
    time.sleep(60)
cli.LabCLI, cli.freeze_imports = train, lambda: None
sys.modules["sftlab.cli"] = cli
from sftlab.__main__ import main
main(["fit"])
"""
FIRST = """
import os, pathlib, subprocess, sys, time
from sftlab.run.folder import begin
folder = pathlib.Path("lightning_logs", "r")
folder.mkdir(parents=True)
begin(folder)
os.environ["SFTLAB_FIRST_RANK"] = "1234567" if sys.argv[2] == "gone" else str(os.getpid())
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, "LOCAL_RANK": "1"})
print(rank.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for it")
@pytest.mark.parametrize("when", ["later", "gone"])
def test_a_rank_ends_with_the_one_that_launched_it(tmp_path, when):
    words = [sys.executable, "-c", FIRST, RANK, when]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as first:
        rank = int(first.stdout.readline())
        if when == "later":
            assert first.stdout.readline() == "trains\n" and is_alive(rank)
            first.kill()
        end = time.monotonic() + 20
        while _runs(rank) and time.monotonic() < end:
            time.sleep(0.02)
        assert not _runs(rank)
        first.kill()


def _runs(process):
    """Whether it is there and is not a zombie."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


LAUNCHES = """
import subprocess, sys, threading, time
from sftlab.run import launcher
launcher.LOOK_EVERY_S = launcher.GRACE_S = 0.05
ranks = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
threading.Thread(target=launcher.watch, args=(ranks,), daemon=True).start()
print(*(rank.pid for rank in ranks), flush=True)
time.sleep(60)
"""


def test_a_launched_rank_that_dies_ends_all_in_one_message():
    words = [sys.executable, "-c", LAUNCHES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        ranks = [int(word) for word in first.stdout.readline().split()]
        os.kill(ranks[1], signal.SIGKILL)
        assert first.wait(60) == 1
        said = first.stderr.read()
    assert f"error: process {ranks[1]} of this run, its rank 2, has ended (by SIGKILL" in said
    assert len(said.splitlines()) == 1 and "--ckpt_path last" in said
    assert not any(_runs(rank) for rank in ranks)


def test_only_ranks_are_told_of_the_one_that_launched_them(monkeypatch):
    seen = []
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    watch_ranks(trainer)
    launcher = trainer.strategy.launcher
    monkeypatch.setattr(launcher, "_call_children_scripts", lambda: seen.append(dict(os.environ)))
    assert launcher.launch(lambda: dict(os.environ)).get("SFTLAB_FIRST_RANK") is None
    assert seen[0]["SFTLAB_FIRST_RANK"] == str(os.getpid())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Node 0 of 2: waits at 127.0.0.1:"),
        (
            {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "5055"},
            "NODE_RANK=1, 2 ... MASTER_ADDR=10.0.0.7 MASTER_PORT=5055\n",
        ),
        ({"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "5055"}, "looks for node 0 at 10.0.0.7:5055"),
        ({"NODE_RANK": "1"}, "node 1 does not know where node 0 is: set MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_a_node_says_whom_it_waits_for(monkeypatch, capsys, given, said):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "SFTLAB_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    options = {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", devices=1, num_nodes=2, strategy="ddp", **options)
    watch_ranks(trainer)
    launcher = trainer.strategy.launcher
    monkeypatch.setattr(launcher, "_call_children_scripts", lambda: None)
    try:
        launcher.launch(lambda: None)
    except ValueError as error:
        assert said in str(error)
    else:
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2])
def test_a_trainer_that_starts_ranks_watches_them(devices):
    trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp", logger=False, enable_checkpointing=False)
    watch_ranks(trainer)
    assert type(trainer.strategy.launcher) is RankLauncher
    assert trainer.strategy.launcher.num_processes == devices
