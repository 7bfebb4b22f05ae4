"""Checkpoints inside stages: ours in every run, a user's own beside it; callbacks of several configs are joined."""

import pytest
import yaml
from fitting import run, write_config, write_records
from small import small_fit, small_mixture

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import DMT
from sftlab.cli import _callbacks_of_earlier_configs


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
    added = _callbacks_of_earlier_configs(words)
    assert added == ['--trainer.callbacks+={"class_path": "B", "init_args": {"n": 1}}']
    assert _callbacks_of_earlier_configs([*words, *added]) == []


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
