"""``chat`` and ``serve``: models by the names of runs and stages, lines from a pipe, answers shown as they are."""

import io
import json
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.commands import chat, serve
from sftlab.data.encoder import Encoder
from sftlab.data.template import get_template
from sftlab.evaluate.local import LocalModel
from sftlab.lab.bases import base_folder
from sftlab.model.backbone import load_tokenizer
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
    monkeypatch.setattr(LocalModel, "_decode", lambda self, prompts, talks, most, look: (
        asked.append(self.encoder.tokenizer.decode(prompts[0])), talks[0].add("\x1b[2Jyes", True)))  # fmt: skip
    out = said(monkeypatch, capsys, ["one", "two"], "dmt/specialised")
    assert "one" in asked[1] and "yes" in asked[1] and "two" in asked[1] and "\x1b" not in out
    out = said(monkeypatch, capsys, ["one"], "dmt/0-specialised", "lightning_logs/dmt/stages/1-general")
    assert out.count("yes") == 2 and "\x1b" not in out


def test_an_answer_that_ends_at_once_is_said_to_be_empty(here, monkeypatch, capsys):
    monkeypatch.setattr(LocalModel, "_decode", lambda self, prompts, talks, most, look: talks[0].add("", True))
    for models in (["dmt"], ["dmt/specialised", "dmt/general"]):
        assert said(monkeypatch, capsys, ["one"], *models).count("(an empty answer") == len(models)


def test_an_answer_is_written_as_it_comes(here, monkeypatch, capsys):
    pieces, show = [], chat.show
    monkeypatch.setattr(chat, "show", lambda *lines, end="\n": (pieces.append((lines[0], end)), show(*lines, end=end)))
    out = said(monkeypatch, capsys, ["What is 2 + 3?"], "dmt", "--max_new_tokens", "8")
    whole = expected(here, "What is 2 + 3?")
    typed = [text for text, end in pieces if not end]
    assert len(typed) > 1 and "".join(typed) == whole and out.count(whole) == 1


@given(st.lists(st.integers(0, 899), min_size=1, max_size=20), st.sampled_from(["vicuna_v1.1", "alpaca"]))
def test_what_was_written_of_an_answer_stays(ids, template):
    tokenizer = load_tokenizer("lab-base")
    encoder = Encoder(tokenizer, get_template(template, tokenizer))
    parts = [encoder.decode_part(ids[:count]) for count in range(1, len(ids) + 1)]
    assert all(later.startswith(part) for part, later in pairwise([*parts, encoder.decode(ids)]))


def test_control_c_ends_the_answer_and_not_the_talk(here, monkeypatch, capsys):
    def stopped(self, prompts, talks, most, look):
        look(self.encoder.tokenizer.encode("so far", add_special_tokens=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalModel, "_decode", stopped)
    assert said(monkeypatch, capsys, ["one", "two"], "dmt").count("so far ...\n") == 2


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
