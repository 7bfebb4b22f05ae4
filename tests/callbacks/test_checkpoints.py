"""Checkpoints inside stages: ours in every run, a user's own beside it; callbacks of several configs are joined."""

import errno
import threading
from pathlib import Path

import pytest
import torch
import yaml
from fitting import run, write_config, write_records
from lightning.pytorch import Callback
from small import small_fit, small_mixture, trained
from torch.distributed.checkpoint import FileSystemWriter

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import DMT, MultiTask
from sftlab.cli import callbacks_of_earlier_configs
from sftlab.model.checkpoint import gathered
from sftlab.model.contents import is_whole
from sftlab.model.parallel import register_strategies
from sftlab.run.folder import complete_checkpoints


@pytest.mark.slow
def test_ours_and_a_users_stand_side_by_side_and_callbacks_of_configs_are_joined(tmp_path):
    write_records(tmp_path)
    config = write_config(tmp_path)
    more = {"trainer": {"callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 2}}]}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    run(tmp_path, "fit", "--config", config, "--config", "more.yaml", "--trainer.max_steps", "5", "--run", "x")
    names = {path.name for path in (tmp_path / "lightning_logs" / "x" / "checkpoints").iterdir()}
    assert "step=000004.ckpt" in names, "ours, from the second config"
    assert any(name.endswith("000005.ckpt") for name in names), "the user's own of the first config, each step"


def test_only_what_the_last_list_lacks_is_added(tmp_path):
    lists = [["A", {"class_path": "B", "init_args": {"n": 1}}], ["A", "C"]]
    words = []
    for number, callbacks in enumerate([lists[0], None, lists[1]]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        words += ["--config", str(path)]
    added = callbacks_of_earlier_configs(words)
    assert added == ['--trainer.callbacks+={"class_path": "B", "init_args": {"n": 1}}']
    assert callbacks_of_earlier_configs([*words, *added]) == []


def test_an_interval_without_sense_is_refused():
    with pytest.raises(ValueError, match="every_n_steps"):
        RunCheckpoint(every_n_steps=0)


def test_the_newest_are_kept_over_a_resume_and_nothing_else_is_removed(tmp_path):
    write_records(tmp_path)
    folder, schedule = tmp_path / "run" / "checkpoints", {"k": 0.1, "steps": 4}

    def names():
        return sorted(path.name for path in folder.iterdir())

    def train(keep_last, **how):
        saver = RunCheckpoint(every_n_steps=1, keep_last=keep_last)
        small_fit(tmp_path / "run", DMT(**schedule), small_mixture(tmp_path), saver, enable_checkpointing=True, **how)
        return names()

    assert train(2, max_steps=3) == ["step=000002.ckpt", "step=000003.ckpt"]
    (folder / "step=000001.ckpt").write_text("a user's own")
    resumed = train(3, ckpt_path=folder / "step=000003.ckpt", max_steps=5)
    stage = "step=000004-specialised.ckpt"
    assert resumed == ["step=000001.ckpt", "step=000002.ckpt", "step=000003.ckpt", stage, "step=000005.ckpt"]
    everything = train(None, ckpt_path=folder / "step=000005.ckpt")
    assert everything == [*resumed, "step=000006.ckpt", "step=000007.ckpt", "step=000008-general.ckpt"]
    less = train(1, ckpt_path=folder / "step=000005.ckpt")
    assert less == ["step=000001.ckpt", stage, "step=000007.ckpt", "step=000008-general.ckpt"]


def test_a_number_without_sense_is_refused():
    with pytest.raises(ValueError, match="keep_last"):
        RunCheckpoint(keep_last=0)


class Held(Callback):
    """Lets the writer of checkpoints wait until training is two steps further, and looks what there is meanwhile."""

    changes_training = False

    def __init__(self, monkeypatch):
        self.let_go, self.seen, self.began = threading.Event(), {}, []
        write = FileSystemWriter.write_data

        def slowly(writer, *arguments):
            if threading.current_thread() is not threading.main_thread():
                self.began.append(1)
                assert self.let_go.wait(60)
            return write(writer, *arguments)

        monkeypatch.setattr(FileSystemWriter, "write_data", slowly)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.global_step] = [path.name for path in complete_checkpoints(Path(trainer.default_root_dir))]
        if trainer.global_step == 3:
            self.let_go.set()


@pytest.fixture(scope="module")
def records(module_records):
    register_strategies()
    return module_records


def sharded(records, folder, *callbacks, asynchronous=True, keep_last=1, **how):
    saver = RunCheckpoint(every_n_steps=2, keep_last=keep_last, asynchronous=asynchronous)
    how = {"strategy": "fsdp2", "enable_checkpointing": True, **how}
    return small_fit(folder, MultiTask(steps=7), small_mixture(records), saver, *callbacks, **how)[1]


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_in_it_is_that_of_its_step(
    records, tmp_path, monkeypatch
):
    held = Held(monkeypatch)
    lines = sharded(records, tmp_path / "behind", held, keep_last=None, max_steps=4)
    assert held.began and held.seen[2] == held.seen[3] == [], "until all is written it is not a checkpoint"
    alone = sharded(records, tmp_path / "waits", asynchronous=False, keep_last=None, max_steps=4)
    assert trained(lines) == trained(alone)
    mine, theirs = (complete_checkpoints(tmp_path / name) for name in ("behind", "waits"))
    assert [path.name for path in mine] == [path.name for path in theirs] == ["step=000002.ckpt", "step=000004.ckpt"]
    one, another = gathered(mine[0]), gathered(theirs[0])
    assert all(torch.equal(one["state_dict"][name], value) for name, value in another["state_dict"].items())
    for number, values in another["optimizer_states"][0]["state"].items():
        assert all(torch.equal(one["optimizer_states"][0]["state"][number][key], v) for key, v in values.items())


def test_a_checkpoint_that_cannot_be_written_ends_in_words_and_the_one_before_stays(records, tmp_path, monkeypatch):
    write, calls = FileSystemWriter.write_data, []

    def full_at_the_second(writer, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        return write(writer, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", full_at_the_second)
    with pytest.raises(OSError, match="No space left") as told:
        sharded(records, tmp_path)
    assert told.value.filename.endswith("step=000004.ckpt")
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "step=000002.ckpt" and is_whole(kept)


def test_without_shards_training_waits_and_says_so(records, tmp_path, capsys):
    sharded(records, tmp_path, strategy="auto", max_steps=3)
    assert "RunCheckpoint.asynchronous: only under strategy: fsdp2" in capsys.readouterr().out
