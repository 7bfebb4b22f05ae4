"""What a study's command says of planning, and of runs that lie in its folder and are none of its own any more."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_run_study import write_study

from sftlab.commands.study import main
from sftlab.report.write import write_report
from sftlab.run.folder import LOGS
from sftlab.screen import screen
from sftlab.study.graph import PlannedRun, StageNode, jobs_of
from sftlab.study.overview import overview
from sftlab.study.results import uncounted_runs, write_results
from sftlab.study.study import Run, Study, read_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study's file in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    return write_study(tmp_path, runs={"dmt": {}}, seeds=[1, 2])


def test_a_dry_run_tells_how_far_it_is_and_what_is_not_counted(study, tmp_path, capsys):
    for seed in (2, 8, 9):
        run = tmp_path / "lightning_logs" / "tiny" / "runs" / f"dmt-seed={seed}"
        run.mkdir(parents=True)
        if seed != 8:  # which has finished no stage
            (run / "freed.json").write_text("[]")
    assert main(["--config", str(study), "--dry-run"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("tiny, runs planned: 0 of 2\n") and "tiny, runs planned: 2 of 2" in told.err
    where = "lightning_logs/tiny/runs that the study does not name"
    assert f"Not counted: 1 finished run in {where}: dmt-seed=9." in " ".join(told.out.split())


def test_the_report_names_what_is_not_counted(study, tmp_path):
    folder = tmp_path / "lightning_logs" / "tiny"
    for number in range(9):
        run = folder / "runs" / f"old-seed={number}"
        run.mkdir(parents=True)
        (run / "freed.json").write_text("[]")
    write_results(read_study(study), [], folder, {}, uncounted_runs(folder, []))
    assert json.loads((folder / "study.json").read_text())["uncounted"][0] == "old-seed=0"
    assert "not counted, for the study no longer has them: old-seed=0, old-seed=1" in write_report(folder).read_text()


def test_the_plan_shows_all_of_its_columns_in_80_however_long_the_names_are():
    names = [f"proportional-share_math=0.4-share_code=0.3-share_general=0.3-seed={seed}" for seed in (1, 2)]
    nodes = (StageNode("specialised", "a", "b", 10, 123_456, 9), StageNode("general", "c", "d", 20, 1_000_000, 9))
    runs = [PlannedRun(Run(name, "p", 1, {}, {}), Path(name), Path(name), nodes, {}) for name in names]
    file = io.StringIO()
    study = Study("mix", "", "", (), {}, {}, (1,), tuple(run.run for run in runs))
    screen(file=file, width=80).print(overview(study, runs, jobs_of(runs), 1))
    shown = file.getvalue()
    assert all(text in shown for text in ("+ specialised", "= specialised", "= general", "tokens", "1,123,456"))
    assert "".join(shown.split()).count("seed=") == 2 and max(map(len, shown.splitlines())) <= 80


def test_the_estimate_counts_the_start_of_each_process_beside_the_tokens(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    node = StageNode("all", "a", "b", 10, 1_000, 9)
    runs = [
        PlannedRun(Run(f"r-seed={n}", "r", n, {}, {}), LOGS / "s" / "runs" / f"r-seed={n}", Path(f"{n}.yaml"),
                   (replace(node, key=f"k{n}"),), {})
        for n in range(4)
    ]  # fmt: skip
    done = runs[0]
    (done.folder / "stages" / "0-all").mkdir(parents=True)
    (done.folder / "freed.json").write_text(json.dumps([["all", 10, "k0"]]))
    (done.folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "stage/seconds": 20.0}) + "\n")
    (LOGS / "s" / "logs").mkdir()
    for n, seconds in enumerate((10, 12, 900)):  # one that waited for a lock or a download
        (LOGS / "s" / "logs" / f"{n}.overhead.json").write_text(json.dumps({"seconds": seconds}))
    jobs = jobs_of(runs)
    study = Study("s", "", "", (), {}, {}, (1,), tuple(run.run for run in runs))
    file = io.StringIO()
    screen(file=file, width=200).print(overview(study, runs, jobs, 1))
    assert (
        "About 1 min 36 s: 50 tokens/s with validation and scores, and 3 starts of a process of 12 s each."
        in file.getvalue()
    )


def test_a_search_shows_what_its_next_runs_are_and_counts_the_finished_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = StageNode("all", "a", "b", 10, 1_000, 9)
    runs = [
        PlannedRun(Run(name, name, 1, {}, {}), LOGS / "s" / "runs" / name, Path(name), (replace(node, key=name),), {})
        for name in ("anchor", "next")
    ]
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "freed.json").write_text(json.dumps([["all", 10, "anchor"]]))
    study = Study("s", "", "", (), {}, {}, (1,), tuple(run.run for run in runs))
    file = io.StringIO()
    screen(file=file, width=80).print(overview(study, runs, jobs_of(runs), 1, hides_finished=True))
    assert "next" in file.getvalue() and "anchor" not in file.getvalue()
    assert "1 of 2 runs are finished and not trained again." in file.getvalue()
