"""``chat`` and ``serve``: models by the names of runs and stages, lines from a pipe, answers shown as they are."""

import io
import json
import sys

import pytest

from sftlab.commands import chat, serve
from sftlab.evaluate.local import LocalModel
from sftlab.lab.bases import base_folder
from sftlab.tasks.task import Problem, Sampling


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A run of two stages; both are the base that ships."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "lightning_logs" / "dmt"
    model, base = LocalModel.from_folder("lab:base", template="vicuna_short"), base_folder("lab:base")
    for stage in ("0-specialised", "1-general"):
        folder = run / "stages" / stage
        folder.mkdir(parents=True)
        for path in base.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        model.encoder.tokenizer.save_pretrained(folder)
        (folder / "sftlab.json").write_text(json.dumps({"template": "vicuna_short"}))
    (run / "state.json").write_text(json.dumps({"status": "finished"}))
    return model


def said(monkeypatch, capsys, lines, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert chat.main(list(arguments)) == 0
    return capsys.readouterr().out


def expected(model, question, most=8):
    ((answer,),) = list(model.answer([Problem("x", (question,))], Sampling(max_new_tokens=most)))
    return answer.texts[0]


def test_lines_are_answered_by_the_last_stage(here, monkeypatch, capsys):
    lines = ["What is 2 + 3?", "", "/new", "And 4?", "/quit", "never"]
    out = said(monkeypatch, capsys, lines, "dmt", "--max_new_tokens", "8")
    assert "dmt (1-general)" in out and "never" not in out
    for question in ("What is 2 + 3?", "And 4?"):  # after /new nothing is remembered
        assert expected(here, question) in out


def test_a_conversation_goes_on(here, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(LocalModel, "_decode", lambda self, prompts, talks, most: (
        asked.append(self.encoder.tokenizer.decode(prompts[0])), talks[0].add("\x1b[2Jyes", True)))  # fmt: skip
    out = said(monkeypatch, capsys, ["one", "two"], "dmt/specialised")
    assert "one" in asked[1] and "yes" in asked[1] and "two" in asked[1] and "\x1b" not in out
    out = said(monkeypatch, capsys, ["one"], "dmt/0-specialised", "lightning_logs/dmt/stages/1-general")
    assert out.count("yes") == 2 and "\x1b" not in out


def test_what_does_not_fit_is_told_and_the_talk_begins_anew(here, monkeypatch, capsys):
    out = said(monkeypatch, capsys, ["a b c " * 500, "Hello"], "dmt", "--max_new_tokens", "2")
    assert "fills the model's 1,024 positions" in out and "(a new conversation)" in out


def test_a_wrong_name_is_told(here):
    for name, message in (("dtm", "did you mean dmt"), ("dmt/generl", "it has specialised, general")):
        with pytest.raises(ValueError, match=message):
            chat.main([name])


def test_serve_prints_the_command_of_the_server_that_there_is(here, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == "vllm" else None)
    assert serve.main(["dmt/specialised", "--port", "9000", "--dry_run"]) == 0
    folder = (tmp_path / "lightning_logs/dmt/stages/0-specialised").resolve()
    assert capsys.readouterr().out == f"vllm serve {folder} --port 9000\n"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert serve.main(["dmt"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("transformers serve ") and "pip install 'transformers[serving]'" in told.err
