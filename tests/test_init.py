"""``init``: files of many kinds become a config that fits them, and that nothing but its reader has to change."""

import json
from pathlib import Path

import pytest
import yaml
from fitting import write_records

from sftlab.cli import config_problems
from sftlab.commands.init import main
from sftlab.data import survey as surveys
from sftlab.data.survey import find_files, survey
from sftlab.starter import Machine, Model, Starter


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_folder_of_files_becomes_a_config_whose_plan_is_shown(here, capsys):
    write_records(here)
    write(here / "scores.jsonl", [{"model": "a", "value": 1}])
    write(here / "math_test.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    assert main([]) == 0
    out = capsys.readouterr().out
    config = yaml.safe_load((here / "sft.yaml").read_text())
    abilities = config["data"]["abilities"]
    assert {name: (a["class_path"], a["init_args"]["path"]) for name, a in abilities.items()} == {
        "math": ("MathData", "math.jsonl"),
        "code": ("CodeData", "code.json"),
        "general": ("GeneralData", "general.json"),
    }  # fmt: skip
    (saved,) = config["trainer"]["callbacks"]
    assert saved["class_path"] == "RunCheckpoint" and saved["init_args"]["every_n_steps"] >= 10
    assert config["schedule"]["class_path"] == "DMT" and "Plan: " in out and "Plan fingerprint" in out
    assert "scores.jsonl: no reader fits; its keys are model, value" in out
    assert "math_test.jsonl: its name says that it is there to evaluate with" in out
    assert "Warning: lab:base comes with sftlab" in out and "--model HuggingFaceTB/SmolLM2-135M" in " ".join(
        out.split()
    )
    assert "# Warning: lab:base comes" in (here / "sft.yaml").read_text()
    assert all("#" in line for line in (here / "sft.yaml").read_text().splitlines() if "  max_length" in line)


def test_a_folder_that_all_files_share_is_told_once(here, capsys):
    folder = here / "a_long_name_of_a_data_folder" / "another_long_name_below_it"
    paths = [folder / "gsm8k" / "train.jsonl", folder / "code_alpaca" / "alpaca_2k.json"]
    for path in paths:
        path.parent.mkdir(parents=True)
        write(path, [{"question": f"{i} + 1?", "answer": f"#### {i}"} for i in range(4)])
    assert main([str(path) for path in paths]) == 0
    out = capsys.readouterr().out
    assert f"In {folder}:" in out.splitlines()
    assert "gsm8k/train.jsonl" in out and "code_alpaca/alpaca_2k.json" in out
    assert str(paths[0]) in (here / "sft.yaml").read_text()


def test_files_whose_names_mean_something_in_a_config_are_names_or_told(here, capsys):
    pairs = [("question", "answer"), ("prompt", "response"), ("instruction", "output")]
    names = ["math.jsonl", "no.jsonl", "1e5.jsonl"]
    for name, (ask, answer) in zip(names, pairs, strict=True):
        write(here / name, [{ask: f"{i} apples + 1?", answer: f"#### {i}"} for i in range(4)])
    assert main(names) == 0
    abilities = yaml.safe_load((here / "sft.yaml").read_text())["data"]["abilities"]
    assert all(isinstance(name, str) for name in abilities) and len(abilities) == 3
    trap = write(here / "${oc.env:HOME}.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    with pytest.raises(ValueError, match=r"begins a reference to something else: rename the file"):
        main([trap, "--to", "new.yaml"])
    assert not (here / "new.yaml").exists()


def test_nothing_is_overwritten_unasked_and_nothing_written_without_data(here):
    write_records(here)
    (here / "sft.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"sft\.yaml exists"):
        main([])
    assert (here / "sft.yaml").read_text() == "mine"
    odd = write(here / "odd.jsonl", [{"model": "a", "value": 1}])
    with pytest.raises(ValueError, match=r"odd\.jsonl: no reader fits; its keys are model, value"):
        main([odd, "--to", "new.yaml"])
    with pytest.raises(ValueError, match="no file nowhere"):
        main(["nowhere", "--to", "new.yaml"])
    assert not (here / "new.yaml").exists()


@pytest.mark.parametrize(
    ("record", "reader", "kind"),
    [
        ({"question": "How many?", "answer": "2 + 3 = 5\n#### 5"}, "GSM8KReader", "math"),
        ({"query": "How many?", "response": "It is \\boxed{5}"}, "RFTReader", "math"),
        ({"instruction": "Add", "input": "", "output": "def add(a, b):\n    return a + b"}, "AlpacaReader", "code"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
         "MessagesReader", "general"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
         "ShareGPTReader", "general"),
        ({"Prompt": "Hi", "Completion": "Hello"}, "PairReader", "general"),
    ],
)  # fmt: skip
def test_readers_and_abilities_are_told_from_the_records(here, record, reader, kind):
    found = survey(write(here / "x.jsonl", [record] * 20))
    assert (type(found.reader).__name__, found.kind, found.num_records) == (reader, kind, 20)


def test_of_a_large_file_only_the_first_records_are_read(here, monkeypatch):
    path = write(here / "big.jsonl", [{"prompt": f"{i:06d} " * 5, "completion": "yes " * 9} for i in range(9_000)])
    monkeypatch.setattr(surveys, "_SMALL_BYTES", 1000)
    read = 0

    def counted(name):
        nonlocal read
        for line in Path(name).read_text().splitlines():
            read += 1
            yield json.loads(line)

    monkeypatch.setattr(surveys, "read_records", counted)
    found = survey(path)
    assert read <= surveys.SAMPLE + 1 and not found.is_counted
    assert found.num_records == pytest.approx(9_000, rel=0.1)


@pytest.mark.parametrize("text", ["", '[{"instruction": "a", "outp', '{"a": 1}', "\x00\x01"])
def test_a_damaged_file_is_told_and_raises_nothing(here, text):
    (here / "x.json").write_text(text)
    found = survey("x.json")
    assert found.reader is None and found.trouble


def test_published_files_are_understood(shared_data):
    found = {Path(file.path).name: file for file in map(survey, map(str, find_files(shared_data)))}
    usable = [file for file in found.values() if file.reader is not None and not file.looks_held_out]
    starter = Starter(usable, Model.at("lab:base"), Machine(8, 64.0, (("H100", 80.0),)))
    assert {name: len(files) for name, files in starter.abilities.items()} == {"math": 2, "code": 1, "general": 1}
    assert found["question.jsonl"].keys[:3] == ("question_id", "category", "turns")
    assert found["test_first600.jsonl"].looks_held_out and found["train.jsonl"].num_records == 7473
    config = yaml.safe_load(starter.text())
    assert config["schedule"]["init_args"]["specialised"] == ["math", "code"]
    assert not config_problems(config)
