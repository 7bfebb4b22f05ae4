"""``runs`` and ``compare``: runs by name, their stages, and tables that fit 80 columns."""

import json
import os
from pathlib import Path

import pytest

from sftlab.commands import compare, runs
from sftlab.evaluate.folder import weights_hash
from sftlab.run.record import Run
from sftlab.run.results import RunStage, path_named

TASKS = ("gsm8k", "lab_general")


def score(stage, step, value, ability="math"):
    return {"task": "gsm8k", "metric": "accuracy/strict@1", "value": value, "ability": ability, "stage": stage,
            "step": step, "headline": True, "num_problems": 40}  # fmt: skip


def make_run(folder, right, state="finished", scored=True):
    """A run of two stages as fit leaves it; ``right`` of 40 problems are right after the second."""
    stages = {"specialised": 10, "general": 20}
    for number, (stage, step) in enumerate(stages.items()):
        export = folder / "stages" / f"{number}-{stage}"
        export.mkdir(parents=True)
        (export / "config.json").write_text("{}")
        answers = folder / "answers" / f"step={step:06d}-{stage}"
        answers.mkdir(parents=True)
        for task in TASKS if scored else ():
            lines = [
                {"task": task, "uid": str(i), "sample": 0, "extractor": "strict@1", "prompts": ["?"],
                 "value": float(i < (right if stage == "general" else 5))} for i in range(40)
            ]  # fmt: skip
            (answers / f"{task}.problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = [{"step": s, "val/loss/general": 2.5 - s / 20, "stage/seconds": 1.0} for s in stages.values()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    if scored:
        rows = [score("specialised", 10, 0.125), score("general", 20, right / 40)]
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "state.json").write_text(json.dumps({"status": state, "step": 20, "num_steps": 20}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftlab.screen._WIDTH_OF_A_FILE", 80)
    logs = tmp_path / "lightning_logs"
    make_run(logs / "dmt", 30)
    make_run(logs / "multi_task", 12, state="stopped")
    make_run(logs / "rq3" / "runs" / "full_general-k=0.25-seed=1", 8, scored=False)
    return tmp_path


def test_runs_are_listed_with_how_they_stand(here, capsys):
    hour = 3600
    stat = (here / "lightning_logs/dmt/state.json").stat()
    os.utime(here / "lightning_logs/dmt/state.json", (stat.st_atime - 3 * hour, stat.st_mtime - 3 * hour))
    assert runs.main([]) == 0
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    (line,) = [line for line in out.splitlines() if line.startswith("dmt ")]
    assert all(word in line for word in ("finished", "general", "math 75.0%", "3 h", "KiB"))
    assert "stopped 20/20" in out and "general 1.500" in out  # where nothing scores, the held-out losses
    assert runs.main(["rq3"]) == 0
    out = capsys.readouterr().out
    assert "full_general-k" in out and "seed=1" in out and "multi_task" not in out


@pytest.mark.parametrize(
    "line",
    [
        {"val/loss/general": 1.5, "step": [20]},
        {"val/loss/general": 1.5, "step": 20.5},
        {"val/loss/general": [1.5], "step": 20},
        {"val/loss/general": 10**400, "step": 20},
        {"val/loss/general": "1.5", "step": 20},
    ],
)
def test_a_run_with_damaged_metrics_is_listed_with_the_line(here, capsys, line):
    metrics = here / "lightning_logs/multi_task/metrics.jsonl"
    (metrics.parent / "scores.jsonl").unlink()
    with metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert runs.main([]) == 0
    out = "".join(capsys.readouterr().out.split())
    assert "stopped20/20" in out and "math75.0%" in out and "line3:" in out and "damaged" in out
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: '(step|val/loss/general)' is not a number"):
        _ = Run("multi_task").metrics


def test_a_loss_that_was_no_number_is_listed_as_such(here, capsys):
    with (here / "lightning_logs/rq3/runs/full_general-k=0.25-seed=1/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"val/loss/general": None, "step": 20}) + "\n" + json.dumps({"x": 1.0}) + "\n")
    assert runs.main(["rq3"]) == 0
    assert "general nan" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"rows": 5}', '{"rows": [{"stage": 5}]}'])
def test_a_damaged_ledger_is_told(here, content):
    (here / "lightning_logs/dmt/ledger.json").write_text(content)
    with pytest.raises(ValueError, match=r"ledger\.json is damaged"):
        _ = Run("dmt").ledger


def test_runs_and_stages_are_compared_by_name(here, capsys):
    assert compare.main(["dmt", "lightning_logs/multi_task"]) == 0
    out = capsys.readouterr().out
    assert (
        all(len(line.rstrip()) <= 80 for line in out.splitlines())
        and out.count("b is worse") == 2
        and "lab_general, strict@1" in out
    )
    assert compare.main(["dmt/specialised", "lightning_logs/dmt/stages/1-general"]) == 0
    assert capsys.readouterr().out.count("b is better") == 2


def test_answers_of_evaluate_are_found_too(here, capsys):
    for name, right in (("dmt", 30), ("multi_task", 31)):
        folder = here / "evaluations" / f"{name}-1-general-0123abcd"
        folder.mkdir(parents=True)
        lines = [{"task": "arc", "uid": str(i), "sample": 0, "extractor": "x@1", "value": float(i < right)}
                 for i in range(40)]  # fmt: skip
        (folder / "arc.problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare.main(["dmt", "multi_task"])
    assert "arc, x@1" in capsys.readouterr().out
    compare.main([str(folder.with_name("dmt-1-general-0123abcd")), str(folder)])
    assert "arc, x@1" in capsys.readouterr().out


def test_of_several_evaluations_that_of_the_present_weights_counts(here):
    export, places = here / "lightning_logs/dmt/stages/1-general", list[Path]()
    (export / "model.safetensors").write_bytes(b"x")
    for number, name in enumerate((weights_hash(export)[:8], "ffffffff", "00000000")):
        places.append(here / "evaluations" / f"dmt-1-general-{name}")
        places[-1].mkdir(parents=True)
        (places[-1] / "arc.problems.jsonl").write_text("")
        os.utime(places[-1], (number, number))
    stage = RunStage(Path("lightning_logs/dmt"), "general")
    assert (here / stage.verdicts()["arc"]["evaluate"]).parent == places[0]
    (export / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert (here / stage.verdicts()["arc"]["evaluate"]).parent == places[2], "none is: the newest"


def test_a_stage_whose_name_ends_as_anothers_has_answers_of_its_own(here):
    for name in ("step=000090-pre-general", "step=000091-two-words"):
        (here / "lightning_logs/dmt/answers" / name).mkdir(parents=True)
        (here / "lightning_logs/dmt/answers" / name / "odd.problems.jsonl").write_text("")
    assert "odd" not in RunStage(Path("lightning_logs/dmt"), "general").verdicts()
    assert "run" in RunStage(Path("lightning_logs/dmt"), "two words").verdicts()["odd"]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("dtm", "dmt", "did you mean dmt"),
        ("dmt/generl", "dmt", "it has specialised, general"),
        ("dmt", "rq3/runs/full_general-k=0.25-seed=1", "no task was answered by both"),
        ("x.problems.jsonl", "y.problems.jsonl", "there is no file x"),
    ],
)
def test_what_cannot_be_compared_is_told(here, a, b, said):
    with pytest.raises(ValueError, match=said):
        compare.main([a, b])


def test_a_run_or_stage_has_one_name_for_every_command(here):
    assert path_named("dmt") == "lightning_logs/dmt" and path_named("lightning_logs/dmt") == "lightning_logs/dmt"
    assert path_named("dmt/general") == "lightning_logs/dmt/stages/1-general"
    assert [path_named(name) for name in ("org/model", "lab:base", "dtm")] == ["org/model", "lab:base", "dtm"]
    with pytest.raises(ValueError, match="no finished stage generl; it has specialised, general"):
        path_named("dmt/generl")
