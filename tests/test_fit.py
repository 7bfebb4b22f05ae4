"""The main job from the command line: what it leaves, exact resume, one process against two."""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from fitting import alike, losses, run, start, write_config, write_records
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftlab.evaluate.local import LocalModel
from sftlab.tasks.gsm8k import GSM8K


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run; its folder of inputs and its run folder."""
    folder = tmp_path_factory.mktemp("fit")
    write_records(folder)
    out, _ = run(folder, "fit", "--config", write_config(folder), "--run", "whole")
    return folder, folder / "lightning_logs" / "whole", out


def weights(run_folder: Path, stage: str = "1-general") -> dict[str, torch.Tensor]:
    return load_file(run_folder / "stages" / stage / "model.safetensors")


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_leaves_what_the_readme_says(whole):
    _, folder, out = whole
    for name in ("config.yaml", "metrics.jsonl", "ledger.json", "exposures.parquet", "checkpoints"):
        assert (folder / name).exists(), name
    assert list(folder.glob("events.out.tfevents.*"))
    assert "Plan: " in out and "Stage 2 of 2, general" in out and str(Path("stages") / "1-general") in out
    # Nothing scores: the losses on held-out examples stand at the end.
    assert re.search(r"Loss on held-out examples after each stage.*general +\d\.\d{4} +\d\.\d{4}", out, re.S)
    tags = {tag for line in losses(folder) for tag, _ in line}
    wanted = {"train/loss", "train/loss/math", "val/loss/general", "stage/index", "data/share/code"}
    assert wanted | {"data/examples_seen/math", "perf/packing_fill", "val/loss/math"} <= tags


def test_the_ledger_accounts_for_every_step(whole):
    _, folder, _ = whole
    ledger = json.loads((folder / "ledger.json").read_text())
    steps = [dict(line)["step"] for line in losses(folder) if "train/loss" in dict(line)]
    assert steps == list(range(1, ledger["num_steps"] + 1))
    last = [dict(line) for line in losses(folder) if "train/loss" in dict(line)][-1]
    for ability in ("math", "code", "general"):
        trained = sum(row["examples"] for row in ledger["rows"] if row["ability"] == ability)
        assert last[f"data/examples_seen/{ability}"] == trained


def test_every_stage_ends_in_a_folder_that_transformers_loads(whole):
    _, folder, _ = whole
    for stage in ("0-specialised", "1-general"):
        path = folder / "stages" / stage
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "river"}], add_generation_prompt=True,
                                            return_tensors="pt", return_dict=True)  # fmt: skip
        assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
        assert "| specialised | code |" in (path / "README.md").read_text()


def test_a_run_cut_short_by_max_steps_goes_on_to_the_plans_end(whole):
    inputs, folder, _ = whole
    config = inputs / "small.yaml"
    out, _ = run(inputs, "fit", "--config", config, "--run", "cut", "--trainer.max_steps", "5")
    assert "Stopped after step 5" in out
    run(inputs, "fit", "--config", config, "--run", "cut", "--ckpt_path", "last")
    cut = inputs / "lightning_logs" / "cut"
    assert losses(cut) == losses(folder)
    assert same(weights(cut), weights(folder))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("workers", "kills"), [(0, 6), (2, 4)])
def test_killed_at_random_instants_and_resumed_it_ends_in_the_same_weights(whole, workers, kills):
    inputs, folder, _ = whole
    rng, run_folder, killed = random.Random(workers), inputs / "lightning_logs" / f"killed{workers}", 0
    arguments = ["fit", "--config", inputs / "small.yaml", "--run", run_folder.name, "--data.num_workers", workers]
    process = start(inputs, *arguments)
    while killed < kills:
        wait_for_steps(run_folder, process, rng.randint(1, 5))
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed often enough"
        killed += 1
        process = start(inputs, *arguments, "--ckpt_path", "last")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert losses(run_folder) == losses(folder)
    assert same(weights(run_folder), weights(folder))
    assert same(weights(run_folder, "0-specialised"), weights(folder, "0-specialised"))


def wait_for_steps(run_folder: Path, process, more: int) -> None:
    """Until the run has logged some more steps, or ended."""
    metrics = run_folder / "metrics.jsonl"
    before = None
    while process.poll() is None:
        if metrics.is_file():
            count = metrics.read_text().count("train/loss")
            before = count if before is None else before
            if count >= before + more:
                return
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--schedule.k", "0.2"], "plan, schedule"),
        (["--model.learning_rate", "0.1"], "model.learning_rate (0.01, now 0.1)"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision"),
        (["--trainer.gradient_clip_val", "0.5"], "trainer.gradient_clip_val (1, now 0.5)"),
        (["--seed_everything", "4"], "seed"),
        (["--data.template", "alpaca"], "data of code"),
    ],
)
def test_a_resume_of_something_else_is_refused_and_says_what_changed(whole, changed, said):
    inputs, folder, _ = whole
    its_own = (folder / "config.yaml").read_bytes()
    arguments = ["--config", inputs / "small.yaml", "--run", "whole", "--ckpt_path", "last", *changed]
    _, err = run(inputs, "fit", *arguments, wanted=2)
    assert "differs from the checkpoint's in" in err and said in err and "Traceback" not in err
    assert (folder / "config.yaml").read_bytes() == its_own, "with which it can still be gone on with"


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 1), ("hidden_size", 64)])
def test_a_resume_of_another_model_is_refused_before_its_weights_are_loaded(whole, key, value):
    inputs, _, _ = whole
    arguments = ["--config", inputs / "small.yaml", "--run", "whole", "--ckpt_path", "last"]
    _, err = run(inputs, "fit", *arguments, f"--model.config.{key}", value, wanted=2)
    assert "ckpt_path: the checkpoint holds another model: net." in err and "Traceback" not in err


def test_a_resume_on_changed_data_is_refused(whole, tmp_path):
    inputs, folder, _ = whole
    write_records(tmp_path, seed=1)
    config = write_config(tmp_path)
    checkpoint = sorted((folder / "checkpoints").glob("*.ckpt"))[0]
    _, err = run(inputs, "fit", "--config", config, "--ckpt_path", checkpoint, wanted=2)
    assert "data of math" in err


@pytest.mark.slow
def test_two_processes_and_other_memory_knobs_train_the_same_steps(tmp_path):
    write_records(tmp_path)
    own = {"optimizer": {"class_path": "SGD", "init_args": {"momentum": 0.9}}, "lr_schedule": "Linear"}
    training = {"model/neftune_alpha": 0.3, "model/label_smoothing": 0.1, "model/frozen": ["model.norm"]}
    stages = {"schedule/init_args/epochs": 2, "schedule/init_args/per_stage": {"general": own}}
    config = write_config(tmp_path, save_every_n_steps=15, **training, **stages)
    args = ["--model.config.attention_dropout", "0.0", "--model.attention", "per_document"]
    knobs = {
        "one": [],
        "accumulate": ["--trainer.accumulate_grad_batches", "3"],
        "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
        "fsdp2": ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"],
    }
    seen = {}
    for name, knob in knobs.items():
        run(tmp_path, "fit", "--config", config, "--run", name, *args, *knob)
        seen[name] = losses(tmp_path / "lightning_logs" / name)
    for name in knobs:
        for mine, theirs in zip(seen[name], seen["one"], strict=True):
            assert alike(mine, theirs), (mine, theirs)
    logs = tmp_path / "lightning_logs"
    export = tmp_path / "exported"
    sharded = next((logs / "fsdp2" / "checkpoints").glob("*-general.ckpt"))
    assert sharded.is_dir()
    run(tmp_path, "export", "--checkpoint", sharded, "--to", export)
    assert same(load_file(export / "model.safetensors"), weights(logs / "fsdp2"))


@pytest.mark.slow
def test_a_sharded_run_resumes_and_may_change_its_number_of_processes(tmp_path):
    write_records(tmp_path)
    stages = {"epochs": 1, "per_stage": {"specialised": {"optimizer": "SGD"}}}
    stages = {f"schedule/init_args/{name}": value for name, value in stages.items()}
    config = write_config(tmp_path, save_every_n_steps=5, **stages)
    gold = [{"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"} for i in range(7)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    task = GSM8K(str(tmp_path / "gold.jsonl"), max_new_tokens=6)
    content = yaml.safe_load(config.read_text())
    options = {"path": "gold.jsonl", "max_new_tokens": 6}
    scores = {"tasks": {"math": {"class_path": "GSM8K", "init_args": options}}, "batch_size": 2}
    content["trainer"]["callbacks"].append({"class_path": "ScoreAbilities", "init_args": scores})
    config.write_text(yaml.safe_dump(content))
    args = ["--config", config, "--model.config.attention_dropout", "0.0", "--trainer.strategy", "fsdp2"]
    run(tmp_path, "fit", *args, "--run", "whole", "--trainer.devices", "2")
    run(tmp_path, "fit", *args, "--run", "cut", "--trainer.devices", "2", "--trainer.max_steps", "13")
    more = ["--trainer.devices", "1", "--trainer.accumulate_grad_batches", "2"]
    run(tmp_path, "fit", *args, "--run", "cut", "--ckpt_path", "last", *more)
    logs = tmp_path / "lightning_logs"
    for mine, theirs in zip(losses(logs / "cut"), losses(logs / "whole"), strict=True):
        assert alike(mine, theirs), (mine, theirs)
    (answered,) = logs.glob("whole/answers/*-general/gsm8k.answers.jsonl")  # by two processes, as one would
    by_two = {row["uid"]: row["texts"] for row in map(json.loads, answered.read_text().splitlines()[1:])}
    alone = LocalModel.from_folder(logs / "whole" / "stages" / "1-general", 2, "cpu")
    by_one = {one.uid: [*one.texts] for some in alone.answer(task.problems(), task.sampling) for one in some}
    assert by_two == by_one and len(by_one) == 7
    mine, theirs = weights(logs / "cut"), weights(logs / "whole")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=1e-3)
