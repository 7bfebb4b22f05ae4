"""Run folders: one run each, what ``last`` means, and which checkpoints count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from sftlab.run import folder as folders
from sftlab.run.folder import (
    LOGS,
    RunState,
    begin,
    complete_checkpoints,
    end,
    new_run_folder,
    release,
    resumed,
    state_of,
)

ROOT = Path(__file__).parents[2]
CLAIM = """
import sys
from sftlab.run.folder import end, new_run_folder
folder = new_run_folder(*sys.argv[1:2], is_trial="trial" in sys.argv[2:])
print(folder, flush=True)
if "wait" in sys.argv[2:]:
    sys.stdin.read()
if "finish" in sys.argv[2:]:
    end(folder, 10, 10)
if "stop" in sys.argv[2:]:
    end(folder, 5, 10)
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", folders.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """A process that claims a folder, and does what the words after its name say."""
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def claim(*arguments: str, **environment: str) -> Path:
    out, err = start(*arguments, **environment).communicate()
    assert not err, err
    return Path(out.strip())


def refused(*arguments: str, **environment: str) -> str:
    out, err = start(*arguments, **environment).communicate()
    assert "ValueError" in err and not out
    return err


def test_runs_started_together_have_folders_of_their_own():
    processes = [start("tiny", "wait") for _ in range(6)]
    assert all(process.stdout is not None for process in processes)
    claimed = {process.stdout.readline().strip() for process in processes}
    assert claimed == {str(LOGS / name) for name in ("tiny", *(f"tiny-{number}" for number in range(2, 7)))}
    assert all(state_of(Path(folder)).status == "running" for folder in claimed)
    for process in processes:
        process.kill()
        process.communicate()
    assert all(state_of(Path(folder)).status == "stopped" for folder in claimed), "a killed run is not running"


def test_started_by_a_launcher_the_first_rank_claims_and_the_others_follow():
    assert claim("tiny", RANK="0", LOCAL_RANK="0") == LOGS / "tiny"
    assert claim("tiny", RANK="1", LOCAL_RANK="1") == LOGS / "tiny"
    assert claim("tiny", SLURM_PROCID="3") == LOGS / "tiny"
    assert "already holds a run" in refused("tiny", RANK="0")
    assert claim("tiny", SLURM_PROCID="0", SLURM_RESTART_COUNT="1") == LOGS / "tiny"
    assert claim("tiny", SFTLAB_RUN_FOLDER="lightning_logs/study/runs/a") == LOGS / "study" / "runs" / "a"


def test_a_folder_has_one_process_at_a_time():
    first = start("tiny", "wait")
    assert first.stdout is not None and first.stdout.readline()
    write_checkpoint(LOGS / "tiny" / "checkpoints" / "step=000003.ckpt", 3)
    said = refused("tiny", SFTLAB_RUN_FOLDER="lightning_logs/tiny")
    assert f"in use by process {first.pid}" in said
    with pytest.raises(ValueError, match="still running"):
        resumed("tiny", "last")
    first.kill()
    first.communicate()
    assert resumed("tiny", "last").folder == LOGS / "tiny"


@pytest.mark.parametrize(("step", "status"), [(5, "finished"), (3, "stopped")])
def test_a_resume_that_is_refused_leaves_a_run_as_it_stood(step, status):
    folder = new_run_folder("mine")
    end(folder, step, 5)
    release(folder)
    begin(folder)
    assert state_of(folder).status == "running"
    release(folder)
    assert state_of(folder).status == status


@pytest.mark.parametrize(
    "content", ["[1]", '{"turn": "x"}', '{"turn": null}', '{"status": 3}', '{"step": [1]}', "[" * 5000, "\x00"]
)
def test_a_damaged_state_of_another_run_stops_no_new_one(content):
    (LOGS / "other").mkdir(parents=True)
    (LOGS / "other" / "state.json").write_text(content)
    assert state_of(LOGS / "other") == RunState()
    release(new_run_folder("mine"))
    with pytest.raises(ValueError, match=r"no whole checkpoint: .* Start again without --ckpt_path; .*every_n_steps"):
        resumed("other", "last")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "a\nb", "x" * 101])
def test_a_name_that_is_none_is_refused_before_anything_is_made(name):
    with pytest.raises(ValueError, match="--run: "):
        new_run_folder(name)
    assert not LOGS.exists()


def test_last_is_the_newest_run_that_is_not_finished_and_says_so():
    claim("tiny", "finish")
    write_checkpoint(LOGS / "tiny" / "checkpoints" / "step=000010-all.ckpt", 10)
    assert resumed("tiny", "last").checkpoint == LOGS / "tiny" / "checkpoints" / "step=000010-all.ckpt"
    claim("tiny")  # died before its first checkpoint
    with pytest.raises(ValueError, match=r"tiny-2 has no whole checkpoint; lightning_logs/tiny has one: --run tiny "):
        resumed("tiny", "last")
    with pytest.raises(ValueError, match=r"tiny is finished; .* --run tiny-2"):
        resumed("tiny", "last", is_exact=True)
    write_checkpoint(LOGS / "tiny-2" / "checkpoints" / "step=000004.ckpt", 4)
    found = resumed("tiny", "last")
    assert found.folder == LOGS / "tiny-2" and "tiny-2, step=000004.ckpt: 4 steps done" in found.notes[-1]
    claim("tiny", "finish")
    write_checkpoint(LOGS / "tiny-3" / "checkpoints" / "step=000010-all.ckpt", 10)
    found = resumed("tiny", "last")
    assert found.folder == LOGS / "tiny-2" and found.notes[0] == "lightning_logs/tiny-3 is finished and not taken"
    claim("tiny", "trial")
    assert resumed("tiny", "last").folder == LOGS / "tiny-2", "a fast_dev_run is never meant"


def test_last_goes_by_starts_not_by_clocks():
    for name in ("tiny", "tiny-2"):
        assert claim("tiny", "stop") == LOGS / name
        path = write_checkpoint(LOGS / name / "checkpoints" / "step=000005.ckpt", 5)
        os.utime(path, (0, 10**9 if name == "tiny" else 0))
        os.utime(LOGS / name, (0, 10**9 if name == "tiny" else 0))
    assert resumed("tiny", "last").folder == LOGS / "tiny-2"
    claim("tiny", "stop", SFTLAB_RUN_FOLDER="lightning_logs/tiny")  # gone on with
    assert resumed("tiny", "last").folder == LOGS / "tiny"


def test_a_name_is_no_pattern():
    assert claim("a[1]*", "stop") == LOGS / "a[1]*"
    write_checkpoint(LOGS / "a[1]*" / "checkpoints" / "step=000005.ckpt", 5)
    assert resumed("a[1]*", "last").folder == LOGS / "a[1]*"
    for name in ("a", "a1x", "a[1]"):
        with pytest.raises(ValueError, match="no run named"):
            resumed(name, "last")


def test_whoever_wrote_it_a_checkpoint_counts_by_the_step_inside_it():
    run = claim("tiny")
    write_checkpoint(run / "checkpoints" / "step=000004.ckpt", 4)
    write_checkpoint(run / "mine" / "epoch=0-best.ckpt", 6)
    write_checkpoint(run / "checkpoints" / ".step=000009.ckpt.x-1-1.partial", 9)
    write_checkpoint(run / "hpc_ckpt_1.ckpt", 5)
    names = [path.name for path in complete_checkpoints(run)]
    assert names == ["step=000004.ckpt", "hpc_ckpt_1.ckpt", "epoch=0-best.ckpt"]
    write_checkpoint(run / "checkpoints" / "step=000006-all.ckpt", 6)
    assert complete_checkpoints(run)[-1].name == "step=000006-all.ckpt", "the end of a stage comes after its last step"


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_that_is_said():
    run = claim("tiny")
    write_checkpoint(run / "checkpoints" / "step=000004.ckpt", 4)
    cut = write_checkpoint(run / "checkpoints" / "step=000008.ckpt", 8)
    whole = cut.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        found = resumed("tiny", "last")
        assert found.checkpoint.name == "step=000004.ckpt"
        assert any("step=000008.ckpt" in note and "not taken" in note for note in found.notes)
        with pytest.raises(ValueError, match=r"--ckpt_path: .*step=000008\.ckpt"):
            resumed("tiny", str(cut))
    (run / "checkpoints" / "step=000004.ckpt").unlink()
    with pytest.raises(ValueError, match="has no whole checkpoint: restore one, or start again") as told:
        resumed("tiny", "last")
    assert "ended before" not in str(told.value) and "step=000008.ckpt" in str(told.value)


def test_a_checkpoint_outside_of_every_run_goes_on_in_a_new_folder(tmp_path):
    path = write_checkpoint(tmp_path / "kept" / "step=000004.ckpt", 4)
    (tmp_path / "config.yaml").touch()
    assert resumed("tiny", str(path)).folder is None
    inside = write_checkpoint(claim("tiny") / "checkpoints" / "step=000004.ckpt", 4)
    assert resumed("other", str(inside)).folder == LOGS / "tiny"
    assert resumed("other", str(inside.absolute())).folder == (LOGS / "tiny").absolute()
    (said,) = resumed("other", str(inside), is_exact=True).notes  # --run other
    assert "--run other is not used" in said and "lightning_logs/tiny" in said
    assert not resumed("tiny", str(inside), is_exact=True).notes
