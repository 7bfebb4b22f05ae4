"""The command ``evaluate``: whatever names a model gives the same scores; results say what they are results of."""

import json
import re
import shutil

import pytest
from fitting import write_records
from safetensors.torch import load_file, save_file
from small import small_fit, small_mixture

from sftlab.callbacks.schedule import MultiTask
from sftlab.commands.evaluate import main


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        write_records(folder)
        small_fit(folder / "run", MultiTask(steps=2), small_mixture(folder))
    return folder / "run"


def evaluate(checkpoint, to, *more):
    options = {"checkpoint": checkpoint, "to": to, "tasks": "lab_math,lab_general"}
    options |= {"lab_math.num_problems": 3, "lab_math.max_new_tokens": 6, "lab_general.num_problems": 2}
    assert main([*(f"--{name}={value}" for name, value in options.items()), *more]) == 0
    return [json.loads(line) for line in (to / "scores.jsonl").read_text().splitlines()]


def test_a_run_a_stage_a_checkpoint_and_any_folder_are_models(trained_run, tmp_path):
    plain = shutil.copytree(trained_run / "stages" / "0-all", tmp_path / "plain")
    [checkpoint] = (trained_run / "checkpoints").glob("*-all.ckpt")
    named = {"run": trained_run, "stage": trained_run / "stages" / "0-all", "ckpt": checkpoint, "folder": plain}
    rows = {name: evaluate(path, tmp_path / "to" / name) for name, path in named.items()}
    for row in (row for mine in rows.values() for row in mine):
        assert {"task", "metric", "num_problems", "value", "standard_error", "low", "high", "fingerprint"} <= row.keys()
    about = {"checkpoint", "weights"}
    first = [{k: v for k, v in row.items() if k not in about} for row in rows["run"]]
    for mine in rows.values():
        assert [{k: v for k, v in row.items() if k not in about} for row in mine] == first
    lines = (tmp_path / "to" / "run" / "lab_math.problems.jsonl").read_text().splitlines()
    keys = {"prompts", "answers", "extracted", "value", "reason", "extractor"}
    assert len(lines) == 2 * 3 and keys <= json.loads(lines[0]).keys()


def test_answers_of_other_weights_or_other_questions_are_not_reused(trained_run, tmp_path):
    model, to = shutil.copytree(trained_run / "stages" / "0-all", tmp_path / "model"), tmp_path / "to"
    evaluate(model, to)
    answers = to / "lab_math.answers.jsonl"
    forged = answers.read_text().replace('"texts": ["', '"texts": ["mine ')
    answers.write_text(forged)
    evaluate(model, to)
    assert "mine " in answers.read_text()  # the same model and questions: taken up as they are
    evaluate(model, to, "--lab_math.num_problems", "4")
    assert "mine " not in answers.read_text()


def test_a_folder_with_results_of_another_model_is_never_written_to(trained_run, tmp_path, monkeypatch):
    model, to = shutil.copytree(trained_run / "stages" / "0-all", tmp_path / "model"), tmp_path / "to"
    rows = evaluate(model, to)
    moved = model.rename(tmp_path / "moved")  # the same weights elsewhere are the same model
    assert [row["value"] for row in evaluate(moved, to)] == [row["value"] for row in rows]
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    weights = load_file(moved / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 0.01}, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds results of another model; name a new folder"):
        evaluate(moved, to)
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    monkeypatch.chdir(tmp_path)
    for path in (moved, trained_run):
        assert main(["--checkpoint", str(path), "--tasks", "lab_math", "--lab_math.num_problems", "2"]) == 0
    names = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert len(names) == 2 and re.fullmatch(r"moved-[0-9a-f]{8}", names[0])
    assert re.fullmatch(r"run-0-all-[0-9a-f]{8}", names[1])


OWN = """
from sftlab import Answer, Problem, Sampling, Task, Verdict

class Capitals(Task):
    name = "capitals"

    def __init__(self, max_new_tokens: int = 16) -> None:
        self.sampling = Sampling(max_new_tokens)

    def problems(self):
        return [Problem("fr", ("What is the capital of France?",), reference="Paris", system="Be brief.")]

    def grade(self, problems, answers):
        gold = {problem.uid: problem.reference for problem in problems}
        return [Verdict(a.uid, a.sample, "contains@1", a.texts[-1], gold[a.uid] in a.texts[-1]) for a in answers]

class Broken:
    pass
"""


def test_a_task_of_ones_own_is_evaluated_by_its_class_path(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_own_tasks.py").write_text(OWN)
    for prefix in ("capitals", "Capitals", "my_own_tasks.Capitals"):
        arguments = ["--checkpoint", str(trained_run), "--tasks", "my_own_tasks.Capitals", "--to", prefix]
        assert main([*arguments, f"--{prefix}.max_new_tokens", "3"]) == 0
        row = json.loads((tmp_path / prefix / "capitals.problems.jsonl").read_text())
        assert (row["task"], row["value"], row["extractor"]) == ("capitals", 0.0, "contains@1")
    assert "mean/contains@1" in capsys.readouterr().out
    (tmp_path / "my_bad_tasks.py").write_text("import no_such_module\n")
    for name, said in (
        ("my_own_tasks.Broken", "is not a Task: derive the class from sftlab.Task"),
        ("my_own_tasks.Capital", "there is no class my_own_tasks.Capital"),
        ("no_tasks.Capitals", "there is no class no_tasks.Capitals"),
        ("my_bad_tasks.Capitals", "my_bad_tasks does not import: No module named 'no_such_module'"),
    ):
        with pytest.raises(ValueError, match=said):
            main(["--checkpoint", str(trained_run), "--tasks", name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gsm8k.num_problems", "0"), ("gsm8k.num_problems", "-3"), ("gsm8k.temperature", ".nan"),
        ("gsm8k.temperature", "-1"), ("gsm8k.num_samples", "1000000000"), ("gsm8k.max_new_tokens", "0"),
        ("gsm8k.seed", "-1"), ("humaneval.seconds", "-1"), ("humaneval.seconds", ".inf"), ("humaneval.memory_mb", "1"),
        ("humaneval.num_workers", "0"), ("lab_math.num_problems", "1000000000"), ("likelihood.max_length", "0"),
        ("likelihood.num_problems", "0"), ("gsm8k.num_problems", "many"),
    ],
)  # fmt: skip
def test_numbers_out_of_bounds_are_one_message(name, value):
    task, option = name.split(".")
    path = ["--likelihood.path", "x.jsonl"] if task == "likelihood" else []
    with pytest.raises(ValueError, match=rf"--{task}.*{option}") as caught:
        main(["--checkpoint", "x", "--tasks", task, *path, f"--{name}={value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "gsm8k"], "required: --checkpoint"),
        (["--checkpoint", "x", "--tasks", "gsm8"], "did you mean gsm8k"),
        (["--checkpoint", "x", "--tasks", "humaneval", "--humaneval.num_problem", "3"], "num_problem"),
        (["--checkpoint", "x", "--tasks", "lab_math", "--batchsize", "3"], "--batchsize"),
        (["--checkpoint", "{folder}", "--tasks", "lab_math"], "not a run folder, stage, checkpoint"),
    ],
)
def test_mistakes_are_told(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        main([word.format(folder=tmp_path) for word in arguments])
