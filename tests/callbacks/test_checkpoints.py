"""Checkpoints inside stages: ours in every run, a user's own beside it; callbacks of several configs are joined."""

import pytest
import yaml
from fitting import run, write_config, write_records

from sftlab.callbacks.checkpoints import RunCheckpoint
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
