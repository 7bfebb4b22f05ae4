"""What a study keeps: freed stages count as done, and nobody goes on from them."""

import os
import subprocess
from pathlib import Path

import pytest
from test_graph import finish, planned_runs

from sftlab.files import partial_name
from sftlab.run.folder import checkpoint_path
from sftlab.study.freed import FREED_FILE
from sftlab.study.graph import jobs_of
from sftlab.study.keep import prune, remove_leftovers
from sftlab.study.study import read_study

LOGS = Path("lightning_logs")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs that share their first stage, two of them finished, each with a model of 1,000 bytes."""
    monkeypatch.chdir(tmp_path)
    runs = planned_runs(LOGS, [[0, 0], [0, 1], [0, 2]])
    for run in runs[:2]:
        finish(run, 2)
        model = run.folder / "stages" / "1-s1" / "model.safetensors"
        model.parent.mkdir(parents=True)
        model.write_bytes(b"x" * 1000)
    return runs


def test_what_is_freed_counts_as_done_and_is_trained_again_where_it_is_needed(runs):
    needed = {job.source for job in jobs_of(runs)}
    assert len(needed) == 1 and needed <= {str(run.folder) for run in runs[:2]}
    assert prune(runs, "weights", needed)[0] == 1
    assert [run.num_done() for run in runs] == [2, 2, 0]
    (job,) = jobs_of(runs)
    assert job.run == "run2" and job.num_shared == 1 and job.source in needed
    assert prune(runs, "weights", ())[0] == 1
    assert [run.num_done() for run in runs] == [2, 2, 0] and not list(LOGS.glob("**/*.ckpt"))
    (job,) = jobs_of(runs)
    assert (job.num_shared, job.num_before) == (0, 0)
    assert all((run.folder / "stages" / "1-s1").is_dir() for run in runs[:2])
    assert prune(runs, "weights", ()) == (0, 0)


def test_models_go_too_where_scores_are_enough_and_bytes_are_those_that_are_free(runs, tmp_path):
    ckpts = [checkpoint_path(run.folder, stage.end_step, stage.name) for run in runs[:2] for stage in run.stages]
    size = sum(path.stat().st_size for path in ckpts)
    os.link(runs[0].folder / "stages" / "1-s1" / "model.safetensors", tmp_path / "elsewhere")
    assert prune(runs, "all", ()) == (0, 0)
    assert prune(runs, "scores", ()) == (2, size + 1000)
    assert not list(LOGS.glob("**/stages/*")) and (tmp_path / "elsewhere").read_bytes() == b"x" * 1000


def test_a_changed_stage_is_not_the_one_that_was_freed_and_a_damaged_note_is_told(runs):
    prune(runs, "weights", ())
    other = planned_runs(LOGS, [[1, 0]])[0]
    assert other.folder == runs[0].folder and other.num_done() == 0
    (runs[0].folder / FREED_FILE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        runs[0].num_done()


def test_what_a_kill_left_half_written_in_a_finished_run_is_removed(runs):
    process = subprocess.Popen(["true"])
    process.wait()
    left = []
    for run in runs[1:]:
        run.folder.mkdir(parents=True, exist_ok=True)
        whole = partial_name(run.folder / "exposures.parquet").name
        left.append(run.folder / whole.replace(f"-{os.getpid()}-", f"-{process.pid}-"))
        left[-1].touch()
    remove_leftovers(runs)
    assert [path.exists() for path in left] == [False, True]  # the other run is resumed, which removes it


def test_keep_is_one_of_three(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {}")
    for keep in ("scores", "some"):
        (tmp_path / "study.yaml").write_text(f"base: base.yaml\nseeds: [1]\nkeep: {keep}\n")
        if keep == "scores":
            assert read_study(tmp_path / "study.yaml").keep == "scores"
        else:
            with pytest.raises(ValueError, match="keep: 'some' is not one of all, weights, scores"):
                read_study(tmp_path / "study.yaml")
