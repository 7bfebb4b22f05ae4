"""From Python: fit gives back a run, whose folder is data frames, models and figures."""

import os
from pathlib import Path

import pytest
import yaml
from fitting import environment, write_config, write_records
from forked import FORKING
from small import MODEL, small_fit, small_mixture
from synthetic import k_study

import sftlab
from sftlab import DMT, Run
from sftlab.run.folder import FOLDER_VARIABLE
from sftlab.shipped import config_path
from sftlab.study.graph import study_folder
from sftlab.study.results import write_results
from sftlab.study.study import read_study


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("launch"), os.getcwd()
    write_records(folder)
    os.chdir(folder)
    os.environ["SFTLAB_CACHE"] = str(folder / "cache")
    yield folder
    os.chdir(before)
    del os.environ["SFTLAB_CACHE"]


@pytest.fixture(scope="module")
def run(here):
    changes = {"schedule.epochs": 1, "data.batch.examples": 16, "schedule.val_every_n_steps": None}
    return sftlab.fit(write_config(here), changes, run="mine")


def test_a_config_gives_a_run_of_data_frames(run, here):
    assert (run.state, run.stages) == ("finished", ["specialised", "general"])
    assert run.folder.resolve() == (here / "lightning_logs" / "mine").resolve() and FOLDER_VARIABLE not in os.environ
    assert run.config["schedule"]["init_args"]["epochs"] == 1
    ledger = run.ledger.set_index(["stage", "ability"])
    assert ledger.loc[("specialised", "code"), "examples"] == 40
    assert run.metrics.index.max() == len(run.metrics.dropna(subset=["train/loss"])) > 3
    assert list(run.losses.index) == ["specialised", "general"] and set(run.losses) == {"math", "general"}
    assert run.scores.empty and "value" in run.scores
    assert repr(Run("mine")) == repr(run)


def test_models_and_figures(run):
    assert run.model("specialised").config.hidden_size == 32
    assert run.tokenizer().chat_template
    ax = run.plot_loss()
    assert {line.get_label() for line in ax.lines} >= {"math", "code", "general"}
    assert len(run.plot_loss("val").get_legend().texts) == 2
    with pytest.raises(ValueError, match="kind is train or val"):
        run.plot_loss("test")
    with pytest.raises(ValueError, match="it has specialised, general"):
        run.model("poetry")


def test_objects_give_a_run_too_and_hand_its_folder_back(here, capsys):
    module = sftlab.SFTModule(path=None, config=MODEL, tokenizer="lab-base", attention="sdpa", learning_rate=1e-2)
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 3, "log_every_n_steps": 1}
    found = sftlab.fit(data=small_mixture(here), schedule=DMT(k=0.1, epochs=1), model=module, trainer=options)
    assert (found.folder.name, found.state) == ("dmt", "stopped")
    assert FOLDER_VARIABLE not in os.environ and len(found.metrics) >= 1
    assert "This Trainer has no" not in capsys.readouterr().out


SCRIPT = """
import sftlab
from sftlab import GeneralData, MathData, MixtureData, MultiTask, SFTModule

how = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "32-true", "max_steps": 1}

config = {
    "data": {"abilities": {"math": {"class_path": "MathData", "init_args": {"path": "lab", "num_examples": 16}}},
             "template": "vicuna_short", "max_length": 192, "batch": {"examples": 8}},
    "schedule": {"class_path": "MultiTask", "init_args": {"steps": 2}},
    "model": {"config": {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1}, "tokenizer": "lab-base"},
}

def objects():
    abilities = {"math": MathData(num_examples=16), "general": GeneralData(num_examples=16)}
    data = MixtureData(abilities, template="vicuna_short", max_length=192, batch={"examples": 8})
    model = SFTModule(config={"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1}, tokenizer="lab-base")
    return sftlab.fit(data=data, schedule=MultiTask(steps=2), model=model, trainer=how, run="objects")

print("AFTER", objects().folder, flush=True)
run = sftlab.fit(config, {f"trainer.{name}": value for name, value in how.items()}, run="from_config")
print("AFTER", run.folder, run.state, flush=True)
try:
    objects()
except ValueError as error:
    print("REFUSED", error)
"""


@pytest.mark.slow
def test_a_script_on_several_processes_goes_on_as_one(here):
    (here / "script.py").write_text(SCRIPT)
    done = FORKING.call([str(here / "script.py")], here, environment(here), timeout=500)
    told = [line for line in done.stdout.splitlines() if line.startswith(("AFTER", "REFUSED"))]
    assert told[:-1] == ["AFTER lightning_logs/objects", "AFTER lightning_logs/from_config stopped"], done.stderr
    assert "other processes run this script again" in told[-1] and done.returncode == 0


def test_a_trainer_by_hand_trains_and_says_what_it_lacks(here, tmp_path, capsys):
    small_fit(tmp_path, DMT(k=0.1, epochs=1), small_mixture(here), max_steps=1)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("This Trainer has no")]
    assert "Ledger" in told and "ScoreAbilities" in told and "Metrics" not in told


def test_what_does_not_go_together_is_refused(here):
    for wrong in ({}, {"config": "sftlab:dmt", "trainer": {"devices": 1}}, {"schedule": DMT()}):
        with pytest.raises(ValueError, match="fit: "):
            sftlab.fit(**wrong)
    with pytest.raises(ValueError, match="no such key"):
        sftlab.fit("sftlab:dmt", {"schedule.kk": 1})
    with pytest.raises(ValueError, match="no run or stage"):
        Run("nowhere")


def test_study_is_a_function_whichever_was_imported_first():
    import sftlab.study.study

    assert callable(sftlab.study)
    with pytest.raises(ValueError, match="does not come with sftlab"):
        sftlab.study("sftlab:studies/rq33")


def test_a_study_may_be_a_mapping_with_a_base_of_ones_own(tmp_path, monkeypatch):
    seen = []

    def main(words):
        study = read_study(Path(words[1]))
        seen.append((study.name, [(run.name, run.config["schedule"]["init_args"]["k"]) for run in study.runs]))
        write_results(study, [], study_folder(study), {})
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftlab.commands.study.main", main)
    (tmp_path / "lightning_logs" / "ks" / "report").mkdir(parents=True)
    base = yaml.safe_load(config_path("sftlab:dmt").read_text())
    Path("mine.yaml").write_text("seed_everything: 7\n")
    grid = {"k": {"keys": ["schedule.k"], "values": [0, "1/4"]}}
    study = sftlab.study({"study": "ks", "base": [base, "mine.yaml"], "grid": grid})
    assert seen == [("ks", [("ks-k=0-seed=7", 0), ("ks-k=1_4-seed=7", 0.25)])]
    assert study.folder == Path("lightning_logs/ks")
    assert sftlab.StudyRuns("ks").decision == "" and sftlab.StudyRuns("ks").results.empty
    with pytest.raises(ValueError, match=r"kk: no study of that name in lightning_logs/; there are ks"):
        sftlab.StudyRuns("kk")


def test_a_studys_folder_is_data_frames(tmp_path):
    study = sftlab.StudyRuns(k_study(tmp_path / "study"))
    assert {"k", "run", "seed", "stage", "ability", "value"} <= set(study.results) and len(study.results) > 10
    assert {"run", "k", "stage", "tokens", "seconds", "reused"} <= set(study.costs)
    assert study.costs["tokens"].sum() > 0 and repr(study).endswith("0 runs)")
