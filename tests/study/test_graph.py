"""The graph of stages: each distinct stage is trained once, after what it follows from."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sftlab.run.folder import checkpoint_path
from sftlab.study.executors import commands, run_local
from sftlab.study.graph import PlannedRun, StageNode, jobs_of
from sftlab.study.job import Outcome
from sftlab.study.study import Run


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
        path = checkpoint_path(run.folder, stage.end_step, stage.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


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
    outcomes = run_local(jobs_of(runs), 2, lambda job, outcome: told.append((job.name, outcome)))
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
