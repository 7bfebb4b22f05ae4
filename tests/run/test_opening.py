"""Opening a model by any of its names, and what is said of those that cannot be opened."""

import json
import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from fitting import run, write_config, write_records
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sftlab.evaluate.local import LocalModel
from sftlab.model.card import model_card
from sftlab.model.checkpoint import gathered, load_shards
from sftlab.model.contents import contents, read_note
from sftlab.run.folder import complete_checkpoints
from sftlab.run.opening import model_folder


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        """Touch a file."""
        return Path.touch, (Path("code-ran"),)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a run of one file and one of shards, both of two stages."""
    folder = tmp_path_factory.mktemp("opening")
    write_records(folder)
    config = write_config(folder, **{"model/config/attention_dropout": 0.0, "schedule/init_args/epochs": 1})
    run(folder, "fit", "--config", config, "--run", "one")
    run(folder, "fit", "--config", config, "--run", "two", "--trainer.devices", "2", "--trainer.strategy", "fsdp2")
    return folder


def opened(name: Path | str, stack: ExitStack) -> dict[str, torch.Tensor]:
    folder = Path(model_folder(name, stack))
    AutoModelForCausalLM.from_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_name_of_a_model_opens_it(inputs, name):
    folder = inputs / "lightning_logs" / name
    checkpoints = complete_checkpoints(folder)
    assert checkpoints[-1].is_dir() == (name == "two")
    with ExitStack() as stack:
        last = opened(folder / "stages" / "1-general", stack)
        for other in (folder, checkpoints[-1]):
            found = opened(other, stack)
            assert found.keys() == last.keys() and all(torch.equal(found[key], last[key]) for key in last)
        first = opened(next(path for path in checkpoints if "specialised" in path.name), stack)
        assert not all(torch.equal(first[key], last[key]) for key in last)
        before = set(folder.rglob("*"))
        assert any("opened" in path.name for path in before)
    assert not any("opened" in path.name for path in folder.rglob("*")), "what was exported on the way is gone"


def test_a_checkpoint_of_a_run_that_cannot_be_written_is_opened_in_tmpdir_which_is_left_empty(
    inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    with ExitStack() as stack:
        folder = Path(model_folder(complete_checkpoints(inputs / "lightning_logs" / "one")[-1], stack))
        assert folder.is_relative_to(tmp_path) and (folder / "model.safetensors").is_file()
    assert not list(tmp_path.iterdir())


def test_shards_are_the_file_that_one_process_writes(inputs):
    runs = inputs / "lightning_logs"
    [one], [two] = (
        [path for path in complete_checkpoints(runs / name) if "general" in path.name] for name in ("one", "two")
    )
    alone, together = torch.load(one, weights_only=True), gathered(two)
    assert alone.keys() == together.keys() and alone["state_dict"].keys() == together["state_dict"].keys()
    [mine], [theirs] = together["optimizer_states"], alone["optimizer_states"]
    assert mine["state"].keys() == theirs["state"].keys()
    assert [group["params"] for group in mine["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    for number, values in theirs["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(mine["state"][number][key], value, atol=1e-3, rtol=1e-2)


def test_a_run_without_a_finished_stage_gives_its_newest_checkpoint_and_says_so(inputs, tmp_path):
    shutil.copytree(inputs / "lightning_logs" / "one", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "stages")
    said: list[str] = []
    with ExitStack() as stack:
        assert Path(model_folder(tmp_path / "cut", stack, said.append)).is_dir()
    assert len(said) == 1 and "has finished no stage; its checkpoint step=" in said[0]


def test_a_sharded_checkpoint_never_runs_code(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards = complete_checkpoints(inputs / "lightning_logs" / "two")[-1]
    evil = tmp_path / "evil" / "checkpoints" / "step=000001.ckpt"
    shutil.copytree(shards, evil)
    shutil.copytree(inputs / "lightning_logs" / "two" / "architecture", tmp_path / "evil" / "architecture")
    metadata = pickle.loads((evil / ".metadata").read_bytes())
    metadata.planner_data = {"a": Evil()}
    (evil / ".metadata").write_bytes(pickle.dumps(metadata))
    contents(evil)
    with ExitStack() as stack, pytest.raises(ValueError, match=r"asks for .* to be run: .* refused"):
        model_folder(evil, stack)
    with pytest.raises(ValueError, match="refused"):
        load_shards({"state_dict": {}}, evil, is_alone=True)
    assert not Path("code-ran").exists()


def test_shards_that_another_python_wrote_are_read(inputs, tmp_path):
    mine = complete_checkpoints(inputs / "lightning_logs" / "two")[-1]
    shutil.copytree(mine, tmp_path / "theirs.ckpt")
    plain = pickle.dumps(pickle.loads((mine / ".metadata").read_bytes()), protocol=2)
    theirs = plain.replace(b"cpathlib\nPosixPath", b"cpathlib._local\nPosixPath")
    assert b"cpathlib._local\nPosixPath" in theirs, "Python 3.13's name for it"
    (tmp_path / "theirs.ckpt" / ".metadata").write_bytes(theirs)
    weights = [gathered(folder)["state_dict"] for folder in (mine, tmp_path / "theirs.ckpt")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_value_among_the_shards_never_runs_code(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.ckpt"
    shutil.copytree(complete_checkpoints(inputs / "lightning_logs" / "two")[-1], evil)
    metadata = pickle.loads((evil / ".metadata").read_bytes())
    [place] = [place for index, place in metadata.storage_data.items() if index.fqn == "optimizer_0.param_groups.0.lr"]
    torch.save(Evil(), evil / "evil.distcp")
    place.relative_path, place.offset, place.length = "evil.distcp", 0, (evil / "evil.distcp").stat().st_size
    (evil / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"param_groups\.0\.lr is not a plain value"):
        gathered(evil)
    assert not Path("code-ran").exists()


def test_a_shard_that_is_missing_or_cut_is_named(inputs, tmp_path):
    copy = tmp_path / "a.ckpt"
    shutil.copytree(complete_checkpoints(inputs / "lightning_logs" / "two")[-1], copy)
    shard = copy / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-50_000])
    with pytest.raises(ValueError, match=r"its shard __1_0\.distcp is missing or cut off"):
        contents(copy)
    shard.unlink()
    with pytest.raises(ValueError, match=r"its shard __1_0\.distcp is missing or cut off"):
        contents(copy)


@pytest.mark.slow
def test_shards_go_on_alone_and_a_file_goes_on_in_shards(inputs):
    base = ["fit", "--config", inputs / "small.yaml"]
    sharded = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    ways = {"alone": (sharded, []), "sharded": ([], sharded)}
    theirs = load_file(inputs / "lightning_logs" / "one" / "stages" / "1-general" / "model.safetensors")
    for name, (before, after) in ways.items():
        run(inputs, *base, "--run", name, *before, "--trainer.max_steps", "5")
        out, _ = run(inputs, *base, "--run", name, *after, "--ckpt_path", "last")
        assert "Resumed after step 5" in out and f"lightning_logs/{name}, step=" in out
        mine = load_file(inputs / "lightning_logs" / name / "stages" / "1-general" / "model.safetensors")
        for key in theirs:
            # Two processes add gradients in another order; where one is nearly 0, AdamW turns that rounding into a
            # part of a step of the learning rate, 1e-2.
            torch.testing.assert_close(mine[key], theirs[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.ckpt", "there is no none.ckpt"),
        ("lightning_logs/on", "there is no lightning_logs/on; did you mean lightning_logs/one?"),
        ("./a/b", "there is no ./a/b"),
        ("a b", "there is no a b"),
        ("empty", "is not a run folder, stage, checkpoint or Hugging Face folder"),
        ("file.txt", "cut off or damaged, or was never a checkpoint"),
        ("shardless.ckpt", "not a complete sharded checkpoint"),
        ("cut-weights", "model.safetensors is cut off or damaged"),
        ("no-config", "config.json is damaged"),
    ],
)
def test_what_is_no_model_is_told_with_its_cause(inputs, monkeypatch, name, said):
    monkeypatch.chdir(inputs)
    Path("empty").mkdir(exist_ok=True)
    Path("file.txt").write_text("garbage")
    Path("shardless.ckpt").mkdir(exist_ok=True)
    for folder in ("cut-weights", "no-config"):
        shutil.copytree("lightning_logs/one/stages/1-general", folder, dirs_exist_ok=True)
    Path("cut-weights/model.safetensors").write_bytes(b"garbage")
    Path("no-config/config.json").write_text("{")
    with ExitStack() as stack, pytest.raises(ValueError) as raised:
        model_folder(name, stack)
    assert said in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_hub_id_stays_one():
    with ExitStack() as stack:
        assert model_folder("meta-llama/Llama-3.2-1B", stack) == "meta-llama/Llama-3.2-1B"
        assert model_folder("gpt2", stack) == "gpt2"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "x"})),
        lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"})),
        lambda folder: (folder / "sftlab.json").write_text("["),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"chat_template": "{% for"}'),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": "2048"}'),
    ],
)
def test_a_damaged_model_folder_ends_in_one_message(inputs, tmp_path, damage):
    shutil.copytree(inputs / "lightning_logs" / "one" / "stages" / "1-general", tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ValueError) as raised:
        LocalModel.from_folder(tmp_path / "m")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "note", ["null", "5", '{"datasets": 5}', '{"training": [1]}', '{"base": {}}', '{"base_hash": 5}', "[" * 100_000]
)
def test_a_damaged_note_of_a_folder_is_named(tmp_path, note):
    (tmp_path / "sftlab.json").write_text(note)
    with pytest.raises(ValueError, match=r"sftlab\.json is damaged: "):
        read_note(tmp_path)


def test_what_a_note_tells_stays_in_its_cell_of_the_card():
    card = model_card({"base": "b", "training": {"a|b": "c\n\n# d"}}, [])
    assert "| a\\|b | c # d |" in card and "\n# d" not in card


def test_a_model_without_some_of_its_weights_is_refused(inputs, tmp_path):
    shutil.copytree(inputs / "lightning_logs" / "one" / "stages" / "1-general", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "layers.1.mlp" not in key},
              tmp_path / "m" / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match=r"has no weights for model\.layers\.1\.mlp"):
        LocalModel.from_folder(tmp_path / "m")
