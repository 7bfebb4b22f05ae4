"""Examples as ``show`` prints them: where they come from, and lines that are the text's own."""

import json

import pytest
from fitting import write_config, write_records

from sftlab.commands.show import main, places_of
from sftlab.data.ability import MathData


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)
    return write_config(tmp_path, **{"data/max_length": 96})


def test_it_names_record_and_file_and_breaks_no_line(config, tmp_path, capsys):
    long = {"query": "one", "response": " ".join(["apple river stone cloud"] * 12)}
    (tmp_path / "math.jsonl").write_text(json.dumps(long) + "\n" + json.dumps(long) + "\n")
    words = ["--data.abilities.math.val_fraction", "0", "--data.max_length", "512"]
    assert main(["--config", str(config), "--ability", "math", *words]) == 0
    out = capsys.readouterr().out
    assert long["response"] in out, "a terminal breaks lines, the command does not"
    found = [line for line in out.splitlines() if line.startswith("math: ")]
    assert {line.split(" ─")[0] for line in found} == {f"math: record {number} of math.jsonl" for number in (1, 2)}, (
        "equal records are told apart"
    )


def test_pieces_of_a_long_conversation_are_numbered(config, tmp_path, capsys):
    turns = [{"from": who, "value": "apple river stone " * 3} for who in ("human", "gpt") * 4]
    (tmp_path / "general.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    words = ["--ability", "general", "--num_examples", "9", "--data.abilities.general.val_fraction", "0"]
    assert main(["--config", str(config), *words]) == 0
    out = capsys.readouterr().out
    pieces = sorted(line.split(" ─")[0].rsplit(", ")[-1] for line in out.splitlines() if line.startswith("general: "))
    assert len(pieces) > 1 and pieces == [f"piece {number}" for number in range(1, len(pieces) + 1)]


def test_what_takes_too_long_to_find_keeps_its_hash(tmp_path, monkeypatch):
    write_records(tmp_path)
    ability = MathData(str(tmp_path / "math.jsonl"))
    uids = [uid for uid, _ in ability.conversations()]
    assert places_of(ability, uids[-1:]) == {uids[-1]: "record 48 of math.jsonl"}
    assert places_of(ability, uids[-1:], max_seconds=-1.0) == {}
