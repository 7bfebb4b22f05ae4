"""The graph of stages: each distinct stage is trained once, after what it follows from."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from sftlab.commands.study import main
from sftlab.files import read_jsonl
from sftlab.run.folder import LOGS, checkpoint_path, new_run_folder, release
from sftlab.study.executors import Executor, Local, commands
from sftlab.study.freed import FREED_FILE, stage_ends
from sftlab.study.graph import Job, PlannedRun, StageNode, jobs_of, refuse_changed, save_stages, study_folder
from sftlab.study.job import Outcome, read_job
from sftlab.study.results import stage_seconds
from sftlab.study.reuse import take_over
from sftlab.study.study import Run, Study


def planned_runs(folder: Path, chains: list[list[int]]) -> list[PlannedRun]:
    """Runs whose stages are named by paths in a tree: equal beginnings, equal keys."""
    runs = []
    for number, chain in enumerate(chains):
        keys = ["/".join(map(str, chain[: i + 1])) for i in range(len(chain))]
        stages = tuple(StageNode(f"s{i}", key, "t", 10 * (i + 1), 100, 50) for i, key in enumerate(keys))
        run = Run(f"run{number}", "run", 0, {}, {})
        runs.append(PlannedRun(run, folder / "study" / "runs" / run.name, folder / "config.yaml", stages, {}))
    return runs


def finish(run: PlannedRun, num_stages: int) -> None:
    for stage in run.stages[:num_stages]:
        write_checkpoint(checkpoint_path(run.folder, stage.end_step, stage.name), stage.end_step)


chains = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=7)


@given(chains=chains, data=st.data())
def test_each_distinct_stage_is_trained_once_after_its_parents(tmp_path_factory, chains, data):
    runs = planned_runs(tmp_path_factory.mktemp("graph"), chains)
    for run in runs:
        finish(run, data.draw(st.integers(0, len(run.stages))))
    by_name = {run.run.name: run for run in runs}
    have = {run.run.name: run.num_done() for run in runs}
    known = {stage.key for run in runs for stage in run.stages[: run.num_done()]}
    trained: list[str] = []
    ended: set[str] = set()
    for job in jobs_of(runs):
        run = by_name[job.run]
        assert set(job.needs) <= ended, "a job comes after those that it needs"
        if job.num_shared > have[job.run]:
            source = next(r for r in runs if str(r.folder) == job.source)
            assert have[source.run.name] >= job.num_shared, "what is taken over is there"
            assert [s.key for s in source.stages[: job.num_shared]] == [s.key for s in job.stages[: job.num_shared]]
            have[job.run] = job.num_shared
        assert have[job.run] == job.num_before
        new = job.stages[job.num_before :]
        trained += [stage.key for stage in new]
        have[job.run] = len(job.stages)
        ended.add(job.name)
    everything = {stage.key for run in runs for stage in run.stages}
    assert sorted(trained) == sorted(everything - known)
    assert all(have[name] == len(run.stages) for name, run in by_name.items())


def test_stages_that_another_study_has_are_taken_over(tmp_path):
    mine = planned_runs(tmp_path / "a", [[0, 1], [0, 2]])
    theirs = planned_runs(tmp_path / "b", [[0, 3]])
    finish(theirs[0], 2)
    jobs = jobs_of(mine, theirs)
    assert [[stage.key for stage in job.stages[job.num_before :]] for job in jobs] == [["0/1"], ["0/2"]]
    assert {job.source for job in jobs} == {str(theirs[0].folder)}


def test_nothing_is_left_of_a_finished_study(tmp_path):
    runs = planned_runs(tmp_path, [[0, 1], [0, 2]])
    for run in runs:
        finish(run, 2)
    assert jobs_of(runs) == []


def test_a_failed_job_stops_only_what_needs_it(tmp_path, monkeypatch):
    runs = planned_runs(tmp_path, [[0, 1], [0, 2], [5, 1]])
    bad = "run0-until-s0"

    def carry_out(job, environment, stop):
        return Outcome(job.name, "broken" if job.name == bad else "", 0.0)

    monkeypatch.setattr("sftlab.study.executors.carry_out", carry_out)
    told = []
    outcomes = Local(2).run(jobs_of(runs), lambda job, outcome: told.append((job.name, outcome)))
    errors = {outcome.job: outcome.error for outcome in outcomes}
    assert errors == {
        bad: "broken", "run0": f"not started: {bad} failed", "run1": f"not started: {bad} failed", "run2": ""
    }  # fmt: skip
    assert ("run0", None) not in told


def test_printed_commands_come_in_waves(tmp_path):
    lines = list(commands(jobs_of(planned_runs(tmp_path, [[0, 1], [0, 2]])), "jobs"))
    assert lines == [
        "# wave 1 of 2: 1 job(s), any number of them at a time",
        "python -m sftlab study --job jobs/run0-until-s0.json",
        "# wave 2 of 2: 2 job(s), any number of them at a time",
        "python -m sftlab study --job jobs/run0.json",
        "python -m sftlab study --job jobs/run1.json",
    ]


def test_printed_commands_are_quoted():
    stage = StageNode("a", "k", "t", 1, 1, 1)
    job = Job("a;touch x", "r", "lightning_logs/s/runs/r", "c", (stage,), "", 0, 0, ())
    assert list(commands([job], "lightning_logs/s/jobs"))[1].endswith("--job 'lightning_logs/s/jobs/a;touch x.json'")


GOOD = {
    "name": "j", "run": "r", "folder": "lightning_logs/s/runs/r", "config_file": "c", "source": "", "num_shared": 0,
    "num_before": 0, "needs": [], "stages": [asdict(StageNode("a", "k", "t", 1, 1, 1))],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "precious/of/my/own"}, {"folder": "/tmp/s/runs/r"}, {"folder": "lightning_logs/s/runs/.."},
        {"folder": "lightning_logs/../runs/r"}, {"folder": "lightning_logs/s/r/runs"}, {"folder": "lightning_logs"},
        {"source": "/etc/s/runs/x", "num_shared": 1, "num_before": 1}, {"name": "../x"}, {"run": "a/b"},
        {"stages": []}, {"num_shared": 2}, {"stages": [{**GOOD["stages"][0], "name": "../x"}]},
        {"stages": [{**GOOD["stages"][0], "end_step": "1"}]}, {"stages": [{**GOOD["stages"][0], "end_step": -1}]},
        {"stages": 3}, {"needs": None}, {"extra": 1},
    ],
)  # fmt: skip
def test_a_job_file_of_whoever_made_it_touches_nothing_outside(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "precious" / "of" / "my" / "own"
    mine.mkdir(parents=True)
    (mine / "file").write_text("work")
    (tmp_path / "job.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match="--job"):
        read_job(tmp_path / "job.json")
    assert (mine / "file").read_text() == "work"


def test_a_link_out_of_the_logs_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "r").mkdir(parents=True)
    (tmp_path / "lightning_logs" / "s").mkdir(parents=True)
    assert Job.from_dict(GOOD).run == "r"
    (tmp_path / "lightning_logs" / "s" / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="not a folder of a study's run"):
        Job.from_dict(GOOD)


class Recorder(Executor):
    """A user's own: does nothing and says that all is well."""

    num_slots = 1

    def __init__(self, note: str = "") -> None:
        self.started: list[str] = []

    def start(self, job):
        self.started.append(job.name)
        return job.name

    def first_done(self, handles):
        return handles[0]

    def outcome(self, handle):
        return Outcome(handle, "", 1.0)


def test_an_executor_of_ones_own_gets_jobs_in_order(tmp_path):
    mine = Recorder()
    outcomes = mine.run(jobs_of(planned_runs(tmp_path, [[0, 1], [0, 2]])), lambda job, outcome: None)
    assert mine.started[0] == "run0-until-s0" and len(outcomes) == 3


def test_a_local_executor_can_run_again(tmp_path, monkeypatch):
    def work(job, environment, stop):
        return Outcome(job.name, "interrupted" if stop.is_set() else "", 1.0)

    monkeypatch.setattr("sftlab.study.executors.carry_out", work)
    local = Local()
    for _ in range(2):
        outcomes = local.run(jobs_of(planned_runs(tmp_path, [[0]])), lambda job, outcome: None)
        assert [outcome.error for outcome in outcomes] == [""]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "lokal"], "did you mean local"),
        (["--executor", "no.such.Thing"], "cannot be imported"),
        (["--executor", "test_graph.Job"], "is not an executor"),
        (["--executor", "broken.Thing"], "broken does not import: NameError"),
        (["--executor", "script.Thing"], "script does not import: SystemExit: 3"),
        (["--executor", "test_graph.Recorder", "--executor.nte", "x"], "unexpected keyword argument 'nte'"),
        (["--executor.note", "x"], "takes no arguments of that form"),
    ],
)
def test_a_wrong_executor_is_one_message(tmp_path, monkeypatch, words, said):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken.py").write_text("no_such_name\n")
    (tmp_path / "script.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ValueError, match=said):
        main(["--config", "study.yaml", *words])


def test_a_study_never_goes_into_the_folder_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release(new_run_folder("mine"))
    with pytest.raises(ValueError, match="mine is the folder of a run"):
        study_folder(Study("mine", "", "", (), {}, {}, (), ()))


def test_a_stage_that_ended_early_is_done_and_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine, theirs = planned_runs(LOGS, [[0, 1], [0, 2]])
    for step, stage in ((4, "s0"), (9, "s1")):
        write_checkpoint(checkpoint_path(mine.folder, step, stage), step)
    lines = [{"step": step, "stage/seconds": 2.0} for step in (4, 9)]
    (mine.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert mine.num_done() == 2 and stage_seconds(mine) == {4: 2.0, 9: 2.0}
    assert stage_ends(mine.folder, mine.stages) == {"s0": 4, "s1": 9}
    (job,) = jobs_of([mine, theirs])
    assert (job.run, job.num_shared, job.source) == ("run1", 1, str(mine.folder))
    take_over(theirs.folder, mine.folder, job.stages[:1], False)
    assert theirs.num_done() == 1 and read_jsonl(theirs.folder / "metrics.jsonl") == lines[:1]
    write_checkpoint(checkpoint_path(theirs.folder, 25, "s1"), 25)
    assert theirs.num_done() == 1, "beyond its planned end it is another stage"


def test_what_was_trained_with_other_settings_is_never_taken_for_a_runs_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, (was, other), (now,) = LOGS / "study", planned_runs(LOGS, [[0, 1], [2, 2]]), planned_runs(LOGS, [[0, 2]])
    folder.mkdir(parents=True)
    save_stages(folder, [was, other])
    refuse_changed(folder, [now])  # nothing is trained yet
    finish(was, 1)
    refuse_changed(folder, [now])  # what is trained is the same
    finish(was, 2)
    refuse_changed(folder, [was, other])
    with pytest.raises(ValueError, match=r"1 run\(s\) were trained .*: lightning_logs/study/runs/run0\."):
        refuse_changed(folder, [now])
    save_stages(folder, [other])  # the study has the run no more, then again
    with pytest.raises(ValueError, match="another name"):
        refuse_changed(folder, [now])
    (was.folder / "checkpoints").rename(tmp_path / "away")
    refuse_changed(folder, [now])
    (was.folder / FREED_FILE).write_text(json.dumps([[s.name, s.end_step, s.key] for s in was.stages]))
    with pytest.raises(ValueError, match="another name"):
        refuse_changed(folder, [now])
