"""export: any name of a model becomes a Hugging Face folder of the wanted kind, here or on the hub."""

import json

import pytest
import torch
from fitting import write_records
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file
from small import small_fit, small_mixture
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftlab.callbacks.ledger import Ledger
from sftlab.callbacks.schedule import DMT
from sftlab.commands.export import main
from sftlab.model.card import model_card
from sftlab.results.score import ScoreRow, mean_score

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two stages with a score after each."""
    place = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(place / "cache"))
        write_records(place)
        small_fit(place / "run", DMT(k=0.1, steps=2), small_mixture(place), Ledger())
    rows = []
    for stage, values in (("specialised", [1.0, 0.0]), ("general", [1.0, 1.0])):
        score = mean_score("gsm8k", "accuracy/strict@1", values)
        rows.append(ScoreRow.of(score, headline=True, best=1.0, stage=stage, step=2, ability="math"))
    (place / "run" / "scores.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    return place / "run"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)


def head_of(path) -> ModelCardData:
    return ModelCard.load(path / "README.md").data


@pytest.mark.parametrize("dtype", ["float32", "bf16", "fp16"])
def test_a_stage_is_written_in_any_type_of_weights(folder, tmp_path, dtype):
    stage, to = folder / "stages" / "0-specialised", tmp_path / "out"
    assert main(["--checkpoint", str(stage), "--to", str(to), "--dtype", dtype]) == 0
    wanted = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    weights, before = load_file(to / "model.safetensors"), load_file(stage / "model.safetensors")
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name].to(wanted)) for name in before)
    assert AutoModelForCausalLM.from_pretrained(to, dtype="auto").dtype is wanted
    assert AutoTokenizer.from_pretrained(to).chat_template == AutoTokenizer.from_pretrained(stage).chat_template


def test_a_run_a_stage_and_a_checkpoint_give_the_same_folder(folder, tmp_path):
    checkpoint = next((folder / "checkpoints").glob("*-general.ckpt"))
    for number, name in enumerate((folder, folder / "stages" / "1-general", checkpoint)):
        main(["--checkpoint", str(name), "--to", str(tmp_path / str(number))])
    one, *others = [
        {path.name: path.read_bytes() for path in (tmp_path / str(n)).iterdir() if path.is_file()} for n in range(3)
    ]
    for other in others:
        assert other == one


@pytest.mark.parametrize("place", ["stages/1-general", "architecture"])
def test_a_link_in_a_strangers_run_brings_no_file_of_ones_own_along(folder, tmp_path, place):
    (tmp_path / "key").write_text(SECRET)
    link = folder / place / "notes.txt"
    link.symlink_to(tmp_path / "key")
    name = folder / place if place.startswith("stages") else next((folder / "checkpoints").glob("*-general.ckpt"))
    try:
        with pytest.raises(ValueError, match="is a link to a file elsewhere"):
            main(["--checkpoint", str(name), "--to", str(tmp_path / "out")])
    finally:
        link.unlink()
    assert not (tmp_path / "out").exists()


def test_weights_are_cut_into_files_of_a_size(folder, tmp_path):
    main(["--checkpoint", str(folder), "--to", str(tmp_path / "out"), "--max_shard_size", "100KB"])
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(folder / "stages" / "1-general").state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    main(["--checkpoint", str(tmp_path / "out"), "--to", str(tmp_path / "joined"), "--max_shard_size", "5GB"])
    assert (tmp_path / "joined" / "model.safetensors").is_file()


def test_the_card_tells_what_was_trained_and_scored_up_to_that_stage(folder, tmp_path):
    for name in ("0-specialised", "1-general"):
        main(["--checkpoint", str(folder / "stages" / name), "--to", str(tmp_path / name)])
    first, second = ((tmp_path / name / "README.md").read_text() for name in ("0-specialised", "1-general"))
    assert "Trained from scratch with sftlab" in first and "Fine-tuned" not in first
    assert "| specialised | math |" in first and "| general | general |" not in first
    assert "| specialised | math |" in second and "| general | general |" in second
    assert "0.5000" in first and "1.0000" in second and "0.5000" not in second
    assert "| peak learning rate | 0.01 |" in second
    assert str(folder.parent) not in second, "no place on this machine is told"


def test_the_head_of_a_card_is_what_the_hub_reads(folder, tmp_path):
    main(["--checkpoint", str(folder), "--to", str(tmp_path / "out")])
    data = head_of(tmp_path / "out")
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation" and "sft" in data.tags
    assert data.base_model is None and data.license is None
    note = {"base": "meta-llama/Llama-3.2-1B@main", "template": "tokenizer", "datasets": ["openai/gsm8k"]}
    (tmp_path / "README.md").write_text(model_card(note, []))
    data = head_of(tmp_path)
    assert (data.base_model, data.datasets) == ("meta-llama/Llama-3.2-1B", ["openai/gsm8k"])
    private = model_card({"base": "/home/someone/models/secret-7b", "template": "alpaca"}, [])
    assert "someone" not in private and "secret-7b" in private and "base_model" not in private


def test_a_dry_run_shows_what_would_be_uploaded_without_a_network_or_a_token(folder, tmp_path, capsys):
    assert main(["--checkpoint", str(folder), "--push", "me/model", "--dry-run", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    size = sum(v.numel() * 2 for v in load_file(folder / "stages" / "1-general" / "model.safetensors").values())
    assert "Would upload" in out and "me/model" in out and "model.safetensors" in out and "tokenizer.json" in out
    assert "library_name: transformers" in out
    [line] = [line for line in out.splitlines() if line.endswith(" model.safetensors")]
    assert size < int(line.split()[0].replace(",", "")) < size * 1.2


def test_an_upload_takes_the_token_from_the_environment_and_never_tells_it(folder, monkeypatch, capsys):
    seen = {}

    class Api:
        def __init__(self, token):
            seen["token"] = token

        def create_repo(self, name, **options):
            seen["repo"] = (name, options["private"])
            return f"https://huggingface.co/{name}"

        def upload_folder(self, repo_id, folder_path, **_):
            seen["files"] = {path.name for path in folder_path.iterdir()}

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert main(["--checkpoint", str(folder), "--push", "me/model"]) == 0
    assert seen["token"] == SECRET and seen["repo"] == ("me/model", True)
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= seen["files"]
    assert SECRET not in capsys.readouterr().out

    def refuse(*_, **__):
        raise RuntimeError(f"401 for token {SECRET}")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(ValueError, match="the hub did not take me/model: 401") as caught:
        main(["--checkpoint", str(folder), "--push", "me/model"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--push", "me/model"], "HF_TOKEN"),
        (["--push", "model"], "ORGANISATION/NAME"),
        (["--push", "../x/y"], "ORGANISATION/NAME"),
        (["--dry-run", "--to", "x"], "goes with --push"),
        ([], "--to: name the folder"),
        (["--to", "x", "--dtype", "int8"], "float32"),
        (["--to", "x", "--max_shard_size", "5 gigabytes"], "5GB"),
    ],
)
def test_what_makes_no_sense_is_told_and_writes_nothing(folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        main(["--checkpoint", str(folder), *words])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="exists"):
        main(["--checkpoint", str(folder), "--to", str(tmp_path)])


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("run/stages/2-mine", "inside the run"),
        ("run/stages/0-specialised/inner", "inside the run"),
        ("run/checkpoints/step=000999.ckpt", "inside the run"),
        ("by_link/2-mine", "inside the run"),
        ("nowhere", "exists"),
        ("new/..", "names nothing"),
        ("..", "exists"),
        ("a\nb", "cannot be seen"),
        ("x" * 300, "is longer than 100 bytes"),
    ],
)
def test_a_model_is_written_to_a_new_folder_that_is_nobodys(folder, tmp_path, monkeypatch, to, said):
    monkeypatch.chdir(folder.parent if to.startswith("run") else tmp_path)
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "by_link").symlink_to(folder / "stages")
    before = sorted(tmp_path.rglob("*")), sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=rf"^--to: .*{said}"):
        main(["--checkpoint", str(folder), "--to", to])
    assert (sorted(tmp_path.rglob("*")), sorted(folder.rglob("*"))) == before
