"""Study files: what runs they stand for, and what is said of bad ones."""

import pytest
import yaml
from fitting import ROOT, write_config, write_records

from sftlab.study.graph import find_problems_of, jobs_of, plan_runs
from sftlab.study.study import read_study

SHIPPED = sorted((ROOT / "configs" / "studies").rglob("*.yaml"))
BASE = {
    "seed_everything": 7,
    "data": {"abilities": {"math": {"class_path": "MathData", "init_args": {"fraction": 1.0}}}, "max_length": 64},
    "schedule": {"class_path": "DMT", "init_args": {"k": 0.5, "epochs": 2}},
    "model": {"path": "lab-base"},
}


def study(tmp_path, **content):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", **content}, sort_keys=False))
    return read_study(path)


def test_every_combination_is_a_run(tmp_path):
    grid = {
        "k": {"keys": ["schedule.k"], "values": [0, "1/4"]},
        "size": {"values": {"small": {"model.path": "lab-small"}, "large": {"model.path": "lab-large"}}},
    }
    found = study(tmp_path, seeds=[1, 2], grid=grid, runs={"a": {}, "b": {"set": {"data.max_length": 32}, "grid": {}}})
    assert len(found.runs) == 2 * 2 * 2 + 2
    assert found.factors == {"k": [0, 0.25], "size": ["small", "large"]}
    run = next(run for run in found.runs if run.name == "a-k=1_4-size=large-seed=2")
    assert run.factors == {"k": 0.25, "size": "large"}
    assert run.config["schedule"]["init_args"] == {"k": 0.25, "epochs": 2}
    assert (run.config["model"]["path"], run.config["seed_everything"]) == ("lab-large", 2)
    assert [run.config["data"]["max_length"] for run in found.runs if run.config_name == "b"] == [32, 32]


def test_a_swept_value_reaches_all_that_refer_to_it(tmp_path):
    base = {**BASE, "model": {"path": "lab-base", "learning_rate": "${schedule.init_args.k}"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    grid = {"k": {"keys": ["schedule.k"], "values": [0.25, 0.125]}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "grid": grid}))
    rates = [run.config["model"]["learning_rate"] for run in read_study(tmp_path / "my.yaml").runs]
    assert rates == [0.25, 0.125]


def test_runs_may_have_seeds_of_their_own(tmp_path):
    found = study(tmp_path, seeds=[1, 2], runs={"a": {}, "b": {"seeds": [7]}})
    assert [(run.config_name, run.seed) for run in found.runs] == [("a", 1), ("a", 2), ("b", 7)]
    assert found.seeds == (1, 2, 7)
    with pytest.raises(ValueError, match="seeds: give whole numbers"):
        study(tmp_path, runs={"b": {"seeds": ["x"]}})


def test_another_class_drops_the_arguments_of_the_old_one(tmp_path):
    found = study(tmp_path, runs={"all": {"set": {"schedule": {"class_path": "MultiTask"}}}})
    assert found.runs[0].config["schedule"] == {"class_path": "MultiTask"}


def test_several_bases_are_merged_and_the_last_word_is_the_command_lines(tmp_path):
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"data": {"max_length": 16}}))
    found = study(tmp_path, base=["base.yaml", "more.yaml"])
    assert found.runs[0].config["data"]["max_length"] == 16
    changed = read_study(tmp_path / "my.yaml", {"seeds": [9]}, {"data.max_length": 8})
    assert [(run.seed, run.config["data"]["max_length"]) for run in changed.runs] == [(9, 8)]


def test_powers_of_ten_are_numbers_however_they_are_written(tmp_path):
    study(tmp_path)
    text = (tmp_path / "my.yaml").read_text()
    (tmp_path / "my.yaml").write_text(
        f"{text}\ngrid: {{rate: {{keys: [model.learning_rate], values: [1e-3, 5E-5]}}}}\n"
    )
    found = read_study(tmp_path / "my.yaml")
    assert found.factors["rate"] == [0.001, 5e-5]
    assert {run.config["model"]["learning_rate"] for run in found.runs} == {0.001, 5e-5}


def test_a_secret_of_the_environment_is_never_resolved_into_the_configs_of_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", "sk-0123456789abcdef")
    monkeypatch.setenv("WHERE", "/data/of/mine")
    asked = {"a": "${oc.env:WHERE}", "b": ["Bearer ${oc.env:SERVICE_KEY}"], "api_key": "${oc.env:MINE}"}
    (run,) = study(tmp_path, set={"data.more": asked}).runs
    assert run.config["data"]["more"] == {**asked, "a": "/data/of/mine"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"sedes": [1]}, "'sedes' is not a key of a study"),
        ({"base": "absent.yaml"}, "there is no file"),
        ({"runs": {"a": {"sett": {}}}}, "runs.a: an entry has set, grid and seeds"),
        ({"figures": ["strategy"]}, "figures: there is no 'strategy'; did you mean strategies"),
        ({"grid": {"k": [0, 1]}}, "k needs keys"),
        ({"grid": {"k": {"keys": "schedule.k", "values": [1]}}}, "k needs keys"),
        ({"grid": {"k": {"keys": ["schedule.k"], "values": [0.5, "1/2"]}}}, "'1/2' stands there twice"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"seeds": ["x"]}, "seeds: give whole numbers"),
        ({"seeds": [-1]}, "seeds: give whole numbers"),
        ({"study": ".."}, "study: '..' names nothing"),
        ({"study": "a/b"}, "contains '/': give a name"),
        ({"runs": {"../../x": {}}}, "contains '/': give a name"),
        ({"runs": {"-rf": {}}}, "begins with '-'"),
        ({"runs": {"a\x1b[2J": {}}}, "cannot be seen"),
        ({"runs": {"a" * 101: {}}}, "longer than 100 bytes"),
        ({"runs": ["a", "b"]}, "runs: give keys and values"),
        ({"set": ["a"]}, "set: give keys and values"),
        ({"grid": {"a/b": {"keys": ["schedule.k"], "values": [1]}}}, "contains '/': give a name"),
        ({"grid": {f"k{i}": {"keys": [f"schedule.k{i}"], "values": list(range(9))} for i in range(5)}}, "10,000 comb"),
        ({"runs": {False: {}}}, "runs: the key False is not text"),
        ({"grid": {None: {"keys": ["schedule.k"], "values": [1]}}}, "the key None is not text"),
        ({"grid": {"k": {"keys": [], "values": [1, 2]}}}, "k needs keys"),
        (
            {
                "grid": {
                    "k": {"keys": ["schedule.k"], "values": [1, 2]},
                    "l": {"values": {"a": {"schedule.init_args.k": 3}}},
                }
            },
            "k and l both set schedule.k",
        ),
        ({"grid": {"s": {"keys": ["seed_everything"], "values": [1, 2]}}}, "seed_everything is what seeds says"),
        ({"runs": {"a": {"set": {"seed_everything": 5}}}}, "runs.a.set: seed_everything is what seeds says"),
        (
            {"grid": {"budget": {"keys": ["schedule.k"], "values": [1]}}, "runs": {"a": {}}, "budget": {"of": "a"}},
            "budget is a factor already",
        ),
        ({"needs": [{"rm": {"to": "/"}}]}, "one of the commands"),
        ({"needs": [{"tag": {"config": "x"}}]}, "one of the commands"),
    ],
)
def test_bad_files_are_told(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        study(tmp_path, **content)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_study_is_valid(path):
    assert path.read_text().startswith("# ")
    found = read_study(path)
    assert find_problems_of(found) == []
    assert len({run.name for run in found.runs}) == len(found.runs) > 0


def test_the_papers_grids_are_all_there():
    sizes = {path.stem: len(read_study(path).runs) for path in SHIPPED if path.parent.name == "paper"}
    assert sizes == {"rq1": 45, "rq2": 60, "rq3": 15, "rq4": 21, "k_sweep": 20, "equal_count": 6, "leave_one_out": 4}


def test_lists_names_and_numbers_are_values_and_stay_as_they_were_written(tmp_path):
    grid = {
        "spec": {"keys": ["schedule.specialised"], "values": [["code", "math"], ["math"]]},
        "k": {"keys": ["schedule.k"], "values": ["1/256", 1]},
    }
    found = study(tmp_path, seeds=3, grid=grid, runs={1: {}})
    assert found.seeds == (3,)
    assert found.factors == {"spec": ['["code", "math"]', '["math"]'], "k": [1 / 256, 1]}
    assert found.written == {"spec": ['["code", "math"]', '["math"]'], "k": ["1/256", "1"]}
    assert found.runs[0].config["schedule"]["init_args"]["specialised"] == ["code", "math"]
    assert [run.name for run in found.runs][:2] == ["1-spec=code_math-k=1_256-seed=3", "1-spec=code_math-k=1-seed=3"]


def test_a_long_name_is_cut_and_stays_unique(tmp_path):
    values = {"v" * 80 + end: {"schedule.k": k} for end, k in (("a", 0), ("b", 1))}
    found = study(tmp_path, seeds=[1], grid={"x": {"values": values}}, runs={"r" * 30: {}})
    names = [run.name for run in found.runs]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 100 and name.endswith("-seed=1") for name in names)


def test_needs_are_found_beside_the_study(tmp_path):
    tag = {"tag": {"config": "base.yaml", "ability": "general", "to": "tags/general"}}
    found = study(tmp_path, needs=["bases.yaml", tag])
    config = str(tmp_path / "base.yaml")
    assert found.needs == (tmp_path / "bases.yaml", ("tag", {**tag["tag"], "config": config}))


def test_runs_are_held_equal_in_steps_and_in_supervised_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    write_config(tmp_path)
    runs = {
        "mixed": {"set": {"schedule": {"class_path": "MultiTask", "init_args": {"epochs": 2}}}},
        "math": {"set": {"schedule": {"class_path": "Sequential", "init_args": {"order": ["math"], "epochs": 2}}}},
        "dmt": {"set": {"schedule.epochs": 2}},
    }
    content = {"base": "small.yaml", "seeds": [1], "budget": {"of": "mixed"}, "runs": runs}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    planned = {run.run.name: run for run in plan_runs(read_study(tmp_path / "my.yaml"))}

    def last(name, unit):
        return planned[f"{name}-budget={unit}-seed=1"].stages[-1].end_step

    def supervised(name, unit):
        return sum(stage.supervised_tokens for stage in planned[f"{name}-budget={unit}-seed=1"].stages)

    steps = last("mixed", "epochs")
    assert last("math", "epochs") < steps == last("math", "steps") == last("dmt", "steps")
    tokens = supervised("mixed", "epochs")
    for name in ("math", "dmt"):
        per_step = supervised(name, "supervised_tokens") / last(name, "supervised_tokens")
        num_stages = len(planned[f"{name}-budget=epochs-seed=1"].stages)
        assert tokens <= supervised(name, "supervised_tokens") < tokens + 3 * num_stages * per_step
    keys = {planned[f"mixed-budget={unit}-seed=1"].stages[-1].key for unit in ("epochs", "steps", "supervised_tokens")}
    assert len(keys) == 1, "the run that the others are held equal to is trained once"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"units": ["steps"]}, "budget: give of"),
        ({"of": "a", "units": ["hours"]}, "'hours' is not one of epochs, steps"),
        ({"of": "b", "units": ["steps"]}, "'b' has no run with the factors of a-budget=steps"),
        ("steps", "budget: give keys and values"),
    ],
)
def test_a_budget_that_cannot_be_is_told(tmp_path, budget, words):
    with pytest.raises(ValueError, match=words):
        study(tmp_path, budget=budget, runs={"a": {}})


def test_a_study_knows_adaptive_stages_before_they_are_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    write_config(tmp_path)

    def adaptive(policy, every=4, **options):
        given = {"adaptive": {"class_path": policy, "init_args": options}, "decide_every_n_steps": every, "steps": 14}
        return {"set": {"schedule": {"class_path": "Adaptive", "init_args": given}}}

    mixing = "OnlineDataMixing"
    runs = {"one": adaptive(mixing), "same": adaptive(mixing, alpha=0.9), "other": adaptive(mixing, alpha=0.5)}
    runs |= {"longer": adaptive(mixing, 5), "bandit": adaptive("Exp3")}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"base": "small.yaml", "seeds": [1], "runs": runs}))
    planned = {run.run.config_name: run for run in plan_runs(read_study(tmp_path / "my.yaml"))}
    assert all(
        [stage.end_step for stage in run.stages] == [14] and run.stages[0].tokens > 0 for run in planned.values()
    )
    assert planned["one"].stages[0].key == planned["same"].stages[0].key
    assert len({run.stages[0].key for run in planned.values()}) == 4
    jobs = jobs_of(list(planned.values()))
    assert sorted(len(job.stages) - job.num_before for job in jobs) == [0, 1, 1, 1, 1]
    budget = {"of": "one", "units": ["supervised_tokens"]}
    runs = {"one": adaptive(mixing), "fixed": {"set": {"schedule.epochs": 2}}}
    content = {"base": "small.yaml", "seeds": [1], "budget": budget, "runs": runs}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="hold runs equal in steps"):
        list(plan_runs(read_study(tmp_path / "my.yaml")))
