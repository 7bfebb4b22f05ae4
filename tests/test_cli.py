"""The command line: fast help, all problems at once, every shipped config, extensions by class path."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from fitting import ROOT, run, write_config, write_records
from jsonargparse import ArgumentParser
from lightning.pytorch import loggers

from sftlab.cli import LabCLI, config_problems, parse_objects
from sftlab.parser import user_errors
from sftlab.plan.table import as_fraction
from sftlab.run.folder import release

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if not {"studies", "searches"} & {*path.parts}]
OVERLAYS = {"13b", "33b", "batch16", "counts", "scores"}


def test_help_names_every_command(tmp_path):
    out, _ = run(tmp_path, "--help")
    assert all(name in out for name in ("fit", "plan", "show", "export", "evaluate", "compare"))
    out, _ = run(tmp_path, "plan", "--help")
    assert "--schedule.k" in out


def test_help_imports_nothing_heavy():
    code = """
import sys
from sftlab.__main__ import main
main(["--help"]), main(["plan", "--help"])
print([name for name in ("torch", "lightning", "transformers", "jsonargparse") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_suggests_the_nearest(tmp_path):
    _, err = run(tmp_path, "evalaute", wanted=2)
    assert "did you mean 'evaluate'" in err


def test_all_problems_of_a_config_are_told_at_once_with_the_nearest_name(tmp_path):
    write_records(tmp_path)
    config = write_config(tmp_path)
    text = config.read_text().replace("template:", "tempalte:").replace("CodeData", "CodData")
    config.write_text(text)
    wrong = ["--modle.path", "x", "--data.abilities.math.fractoin", "0.2", "--schedule.k", "abc"]
    _, err = run(tmp_path, "fit", "--config", config, *wrong, "--trainer.max_stepz", "3", wanted=2)
    for said in ("6 problem(s)", "did you mean template", "did you mean CodeData", "did you mean model",
                 "did you mean fraction", "'abc' is not of type float", "did you mean max_steps"):  # fmt: skip
        assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("section", ["data", "schedule", "model", "trainer"])
def test_a_section_without_keys_is_named(tmp_path, section):
    write_records(tmp_path)
    config = yaml.safe_load(write_config(tmp_path).read_text())
    assert config_problems(config) == []
    assert f"{section}: it has no keys; give it some, or leave it out" in config_problems({**config, section: None})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data/batch": {"examples": 8, "rows": 2}}, "either examples or rows"),
        ({"data/template": "vicuna"}, "vicuna_v1.1"),
        ({"data/overlong": "cut"}, "split, truncate, drop"),
        ({"schedule/init_args/k": 1.5}, "schedule.k"),
        ({"schedule/init_args/specialised": ["math", "poetry"]}, "poetry"),
        ({"schedule/init_args/per_stage": {"genral": {}}}, "genral"),
        ({"schedule/init_args/steps": 5}, "one budget"),
        ({"model/attention": "fast"}, "per_document"),
        ({"data/abilities/math/init_args/path": "nowhere.jsonl"}, "no such file"),
        ({"data/max_length": "${oc.env:NOT_THERE}"}, "a reference .* cannot be resolved: .*NOT_THERE"),
        ({"data/max_length": "${data.max_length}"}, "a reference .* cannot be resolved"),
        ({"data/abilities/math/dict_kwargs": {"fractoin": 1}}, "no such key of MathData; did you mean fraction"),
        ({"data/abilities": {False: {"class_path": "MathData"}}}, "the key False is not text; write it in quotes"),
        ({"seed_everything": -1}, "seed_everything: -1 must be between 0"),
    ],
)
def test_a_users_mistake_ends_in_one_message(tmp_path, monkeypatch, change, said):
    write_records(tmp_path)
    config = write_config(tmp_path, **change)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=said):  # main() turns these into one line and exit status 2
        objects = parse_objects(["--config", str(config)])
        objects.schedule.compile(objects.data, objects.model)
        objects.model.configure_model()


def test_a_run_is_named_by_its_config_where_that_has_references_too(tmp_path, monkeypatch):
    write_records(tmp_path)
    config = write_config(tmp_path, **{"data/max_length": "${oc.env:LENGTH}"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENGTH", "96")
    monkeypatch.setattr(sys, "argv", ["sftlab", "fit", "--config", str(config)])
    monkeypatch.setattr(LabCLI, "_run_subcommand", lambda *_: None)
    cli = LabCLI()
    release(Path(cli.trainer.default_root_dir))
    assert (cli.trainer.default_root_dir, cli.datamodule.max_length) == ("lightning_logs/small", 96)


def test_a_runs_own_config_is_a_config_and_a_study_is_none(tmp_path, monkeypatch):
    write_records(tmp_path)
    config = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    config.write_text(config.read_text() + "ckpt_path: null\nweights_only: null\n")
    assert parse_objects(["--config", str(config)]).data.abilities
    (tmp_path / "study.yaml").write_text("base: base.yaml\nruns: {a: {}}\n")
    with pytest.raises(ValueError, match=r"this is a study, .* lightning_logs/<study>/configs/"):
        parse_objects(["--config", "study.yaml"])


def test_plan_prints_without_weights_and_show_marks_what_is_trained(tmp_path):
    write_records(tmp_path)
    config = write_config(tmp_path, **{"model/config": None, "model/path": "lab-base"})
    out, _ = run(tmp_path, "plan", "--config", config)
    assert "Plan: " in out and "specialised" in out and "Plan fingerprint" in out
    out, _ = run(tmp_path, "show", "--config", config, "--ability", "math", "--num_examples", "1")
    assert "ASSISTANT:[[ " in out and "</s>]]" in out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert path.read_text().startswith("# ")
    first = ["--config", str(ROOT / "configs/paper/dmt.yaml")] if path.stem in OVERLAYS else []
    objects = parse_objects([*first, "--config", str(path)])
    stages = objects.schedule.final_stages(list(objects.data.abilities))
    assert all(set(stage.fractions) <= set(objects.data.abilities) for stage in stages)


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        ("dmt", [3051, 2031]),
        ("mixed_sequential", [3051, 2019]),
        ("multi_task", [5070]),
        ("sequential", [471, 2583, 2019]),
    ],
)
def test_the_papers_configs_plan_the_papers_steps_without_its_data(strategy, steps):
    paper = ROOT / "configs" / "paper"
    objects = parse_objects(["--config", str(paper / f"{strategy}.yaml"), "--config", str(paper / "counts.yaml")])
    plan = objects.schedule.compile(objects.data, objects.model)
    assert [stage.num_steps for stage in plan.stages] == steps


OWN = """
from lightning.pytorch import Callback
from sftlab.callbacks.schedule import StageSchedule
from sftlab.data.ability import AbilityData
from sftlab.data.conversation import Turn
from sftlab.data.readers import Reader
from sftlab.plan.policy import MixturePolicy

class PoemReader(Reader):
    def turns(self, record):
        return [Turn("user", f"A poem about {record['topic']}"), Turn("assistant", record["poem"])]

class PoemData(AbilityData):
    default_reader = PoemReader

class Warmup(StageSchedule):
    def stages(self, abilities):
        return [self.stage("taste", dict.fromkeys(abilities, 0.5)), self.stage("all", dict.fromkeys(abilities, 1.0))]

class PoemsFirst(MixturePolicy):
    counted_in = "supervised_tokens"

    def shares(self, pools):
        return {pool.ability: 0.75 if pool.ability == "poetry" else 0.25 / (len(pools) - 1) for pool in pools}

class Shout(Callback):
    def on_stage_end(self, trainer, module, stage):
        print("OVER:", stage.stage.name, stage.num_steps)
"""


def test_a_users_own_ability_schedule_policy_and_callback_work_by_class_path_alone(tmp_path):
    write_records(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    poems = "".join(f'{{"topic": "stone {i}", "poem": "river cloud {i} light"}}\n' for i in range(30))
    (tmp_path / "poems.jsonl").write_text(poems)
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    content["data"]["abilities"]["poetry"] = {"class_path": "own.PoemData", "init_args": {"path": "poems.jsonl"}}
    content["data"]["policy"] = {"class_path": "own.PoemsFirst"}
    content["schedule"] = {"class_path": "own.Warmup", "init_args": {"epochs": 1}}
    content["trainer"]["callbacks"].append({"class_path": "own.Shout"})
    config.write_text(yaml.safe_dump(content))
    out, _ = run(tmp_path, "fit", "--config", config)
    assert "OVER: taste" in out and "OVER: all" in out
    assert "75.00%" in out


def test_fractions_are_written_as_people_write_them():
    assert [as_fraction(x) for x in (0, 1, 1 / 256, 0.3)] == ["0", "1", "1/256", "0.3"]


PACKAGES = {"CometLogger": "comet-ml", "LitLogger": "litlogger", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}


def test_every_logger_of_lightning_works_or_names_its_package_in_one_line_and_repeats_no_key():
    assert set(loggers.__all__) - {"Logger", "CSVLogger", "TensorBoardLogger"} == set(PACKAGES), "try the new one"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=loggers.Logger | Iterable[loggers.Logger] | bool | None)
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(package.replace("-", "_")) is not None:
            continue
        key = ["--logger.api_key", "sk-0123456789abcdef"] if name == "CometLogger" else []
        with pytest.raises(ValueError) as raised, user_errors():
            if name == "LitLogger":  # jsonargparse takes it for no logger
                loggers.LitLogger()
            parser.instantiate(parser.parse_args([f"--logger=lightning.pytorch.loggers.{name}", *key]))
        said = str(raised.value)
        assert package in said and len(said.splitlines()) == 1 and "sk-" not in said and "Given" not in said


@pytest.mark.parametrize(("key", "tool"), [("model_name_or_path", "LLaMA-Factory"), ("base_model", "axolotl")])
def test_a_config_of_another_tool_is_told_in_one_message_that_leads_on(key, tool, tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({key: "x", "learning_rate": 1e-4, "num_train_epochs": 3}))
    with pytest.raises(ValueError, match=rf"1 problem.*\n.*{key}: .*{tool}.*sftlab docs coming-from") as raised:
        parse_objects(["--config", str(tmp_path / "theirs.yaml")])
    told = str(raised.value)
    assert "did you mean" not in told
    assert f"\n    {key} is model.path here" in told and "\n    num_train_epochs is schedule.epochs here" in told


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="needs a logger that is not there")
def test_of_several_loggers_the_one_that_is_missing_is_told_alone():
    there = {"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "prefix": "sk-0123456789abcdef"}}
    both = json.dumps([there, {"class_path": "MLFlowLogger"}])
    with pytest.raises(ValueError) as raised:
        parse_objects(["--config", str(ROOT / "configs" / "dmt.yaml"), "--trainer.logger", both])
    said = str(raised.value)
    assert "pip install" in said and "mlflow" in said and "sk-" not in said and "CSVLogger" not in said
