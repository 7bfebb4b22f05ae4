"""The command ``evaluate``: whatever names a model gives the same scores; results say what they are results of."""

import json
import shutil

import pytest
from fitting import write_records
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
    answers.write_text(answers.read_text().replace('"texts": ["', '"texts": ["mine '))
    shutil.copy(model / "model.safetensors", tmp_path / "again")
    shutil.copy(tmp_path / "again", model / "model.safetensors")  # rewritten, as by another run
    evaluate(model, to, "--lab_math.num_problems", "4")
    assert "mine " not in answers.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "gsm8k"], "required: --checkpoint"),
        (["--checkpoint", "x", "--tasks", "gsm8"], "did you mean gsm8k"),
        (["--checkpoint", "x", "--tasks", "humaneval", "--humaneval.num_problem", "3"], "num_problem"),
        (["--checkpoint", "x", "--tasks", "lab_math", "--batchsize", "3"], "--batchsize"),
        (["--checkpoint", "{folder}", "--tasks", "lab_math"], "no run folder, stage, checkpoint"),
    ],
)
def test_mistakes_are_told(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        main([word.format(folder=tmp_path) for word in arguments])
