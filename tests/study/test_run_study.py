"""Studies from end to end: equal stages are trained once, and nothing that was finished is lost or done twice."""

import json
import os
import signal
import time

import pytest
import yaml
from fitting import alike, losses, run, start, write_config, write_records

WEIGHTS = "model.safetensors"


def write_study(folder, **content):
    write_records(folder)
    write_config(folder)
    path = folder / "tiny.yaml"
    runs = {
        "dmt": {"grid": {"k": {"keys": ["schedule.k"], "values": [0, "1/2"]}}},
        "mixed_sequential": {
            "set": {"schedule": {"class_path": "MixedSequential", "init_args": {"epochs": 3, "val_every_n_steps": 4}}}
        },
    }
    path.write_text(yaml.safe_dump({"base": "small.yaml", "runs": runs, "figures": ["k"], **content}, sort_keys=False))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(folder):
    """The results of a study, without the hash of configs that name the test's own folder."""
    return [{k: v for k, v in row.items() if k != "config_hash"} for row in rows(folder / "results.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a study that ran without a break, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    out, _ = run(folder, "study", "--config", write_study(folder))
    return folder, out


@pytest.mark.slow
def test_reused_runs_end_in_the_weights_of_runs_from_scratch(finished):
    folder, _ = finished
    study = folder / "lightning_logs" / "tiny"
    reused = study / "runs" / "dmt-k=1_2-seed=3"
    assert [stage["stage"] for stage in json.loads((reused / "reused.json").read_text())] == ["specialised"]
    run(folder, "fit", "--config", study / "configs" / "dmt-k=1_2-seed=3.yaml", "--run", "scratch")
    scratch = folder / "lightning_logs" / "scratch"
    for stage in ("0-specialised", "1-general"):
        assert (reused / "stages" / stage / WEIGHTS).read_bytes() == (scratch / "stages" / stage / WEIGHTS).read_bytes()
    assert losses(reused) == losses(scratch)
    assert json.loads((reused / "ledger.json").read_text()) == json.loads((scratch / "ledger.json").read_text())


@pytest.mark.slow
def test_no_replay_is_mixed_sequential_and_costs_nothing_more(finished):
    folder, out = finished
    study = folder / "lightning_logs" / "tiny"
    of = {(r["run"], r["stage"], r["ability"]): r["value"] for r in rows(study / "results.jsonl")}
    pairs = [(of["dmt-k=0-seed=3", s, a], v) for (r, s, a), v in of.items() if r == "mixed_sequential-seed=3"]
    assert len(pairs) == 4
    assert all(a == b for a, b in pairs)
    costs = {row["run"]: row for row in rows(study / "costs.jsonl")}
    assert [stage["reused"] for stage in costs["mixed_sequential-seed=3"]["stages"]] == [True, True]
    assert [stage["reused"] for stage in costs["dmt-k=1_2-seed=3"]["stages"]] == [True, False]
    assert all(row["status"] == "done" for row in costs.values())
    assert "done  mixed_sequential-seed=3" in out
    assert (study / "report" / "index.html").is_file()
    again, _ = run(folder, "study", "--config", "tiny.yaml")
    assert "0 tokens are left to train" in again
    assert "start" not in again


@pytest.mark.slow
def test_a_study_killed_twice_gives_the_same_results(finished, tmp_path):
    config = write_study(tmp_path)
    runs = tmp_path / "lightning_logs" / "tiny" / "runs"

    def killed_when(reached):
        process = start(tmp_path, "study", "--config", config)
        deadline = time.monotonic() + 120
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, (out, err)

    killed_when(lambda: list(runs.glob("dmt-k=0*/checkpoints/step=00002*.ckpt")))
    assert not list(runs.glob("dmt-k=0*/stages/1-general")), "killed inside the first run"
    killed_when(lambda: list(runs.glob("dmt-k=0*/stages/1-general")))
    run(tmp_path, "study", "--config", config)
    assert results(runs.parent) == results(finished[0] / "lightning_logs" / "tiny")


@pytest.mark.slow
def test_a_killed_studys_training_goes_on_and_a_printed_job_finds_it_done(tmp_path):
    config = write_study(tmp_path, runs={"dmt": {}})
    out, _ = run(tmp_path, "study", "--config", config, "--executor", "print")
    (line,) = [line for line in out.splitlines() if line.startswith("python -m sftlab study --job ")]
    process = start(tmp_path, "study", "--config", config)
    study = tmp_path / "lightning_logs" / "tiny"
    while not list(study.glob("runs/dmt-seed=3/checkpoints/*.ckpt")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run(tmp_path, *line.removeprefix("python -m sftlab ").split())
    log = (study / "logs" / "dmt-seed=3.txt").read_text()
    assert "Resumed" not in log, "the training that was on its way was not started a second time"
    assert list(study.glob("runs/dmt-seed=3/stages/1-general"))


@pytest.mark.slow
def test_problems_of_configs_are_told_before_anything_runs(tmp_path):
    bad = {"set": {"schedule.per_stage": {"absent": {}}, "model.learning_rat": 1}}
    _, err = run(tmp_path, "study", "--config", write_study(tmp_path, runs={"good": {}, "bad": bad}), wanted=2)
    assert "model.learning_rat: no such key of SFTModule; did you mean learning_rate? (in 1 of 2 runs)" in err
    assert not list(tmp_path.glob("lightning_logs/tiny/runs/*"))


@pytest.mark.slow
def test_a_failed_run_is_told_and_counted(tmp_path):
    config = write_study(tmp_path, runs={"bad": {"set": {"trainer.callbacks": [{"class_path": "fitting.Broken"}]}}})
    _, err = run(tmp_path, "study", "--config", config, wanted=1)
    assert "failed: bad-seed=3" in err
    assert "broken on purpose" in err
    assert [row["status"] for row in rows(tmp_path / "lightning_logs" / "tiny" / "costs.jsonl")] == ["failed"]


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_results(finished, tmp_path):
    pytest.importorskip("ray")
    run(tmp_path, "study", "--config", write_study(tmp_path), "--executor", "ray")
    assert results(tmp_path / "lightning_logs" / "tiny") == results(finished[0] / "lightning_logs" / "tiny")


@pytest.mark.slow
def test_a_run_over_two_nodes_of_a_ray_cluster_trains_what_one_process_does(tmp_path):
    pytest.importorskip("ray")
    short = {"schedule.steps": 3, "schedule.epochs": None, "model.config.attention_dropout": 0.0}
    nodes = {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.strategy": "ddp"}
    config = write_study(tmp_path, runs={"wide": {"set": {**short, **nodes}}}, figures=[])
    run(tmp_path, "study", "--config", config, "--executor", "ray")
    study = tmp_path / "lightning_logs" / "tiny"
    assert (study / "logs" / "wide-seed=3.node1.txt").is_file()
    one = [f"--{key}={value}" for key, value in {"trainer.num_nodes": 1, "trainer.strategy": "auto"}.items()]
    run(tmp_path, "fit", "--config", study / "configs" / "wide-seed=3.yaml", "--run", "one", *one)
    pairs = zip(losses(study / "runs" / "wide-seed=3"), losses(tmp_path / "lightning_logs" / "one"), strict=True)
    assert all(alike(mine, theirs) for mine, theirs in pairs)
