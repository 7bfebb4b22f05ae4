"""Looking into checkpoints and model folders: what is whole is seen as such, damage is named, and nothing runs."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sftlab.model.contents import check_model_folder, contents, is_whole

RAN = Path("code-ran")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        """Touch a file."""
        return os.system, (f"touch {RAN}",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "a.ckpt", 7).read_bytes()


def test_a_whole_checkpoint_is_read_without_its_tensors(tmp_path):
    found = contents(write_checkpoint(tmp_path / "a.ckpt", 7))
    assert (found.step, found.can_resume, found.weights) == (7, True, ("net.model.w",))
    torch.save({"global_step": 7, "state_dict": {"net.model.w": torch.zeros(3)}}, tmp_path / "weights.ckpt")
    assert not contents(tmp_path / "weights.ckpt").can_resume and not is_whole(tmp_path / "weights.ckpt")


@given(data=st.data())
@settings(max_examples=200)
def test_cut_or_changed_anywhere_it_is_refused_or_still_says_the_same(whole, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.ckpt"
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, min(len(whole), start + 64)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=64)) + whole[end:])
    try:
        contents(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1


@given(st.integers(0, 2000))
@settings(max_examples=100)
def test_cut_off_it_is_refused(whole, tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.ckpt"
    path.write_bytes(whole[: min(length, len(whole) - 1)])
    with pytest.raises(ValueError, match="cut off or damaged"):
        contents(path)


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_pickle_is_looked_at_without_harm(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    try:
        contents(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_no_code_of_a_stranger_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"global_step": 3, "state_dict": {}, "sftlab": Evil()}, "file.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Evil()))
    shards = Path("shards.ckpt")
    shards.mkdir()
    torch.save({"global_step": 3, "evil": Evil()}, shards / "meta.pt")
    (shards / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Evil(), "storage_data": [Evil()]}))
    for path in (Path("file.ckpt"), Path("raw.ckpt"), shards):
        assert not is_whole(path)
    assert not RAN.exists()
    pickle.loads(pickle.dumps(Evil()))
    assert RAN.exists(), "it would have run"


def test_a_missing_one_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        contents(tmp_path / "none.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"not a complete sharded checkpoint: it has no \.metadata"):
        contents(tmp_path / "folder.ckpt")


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"a": torch.zeros(5), "b": torch.ones(2, 3)}, path / "model.safetensors")
    return path


def test_a_whole_model_folder_passes(tmp_path):
    folder = model_folder(tmp_path / "a")
    check_model_folder(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_model_folder(folder)
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00001\.safetensors is missing"):
        check_model_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1}', "\x00"])
def test_a_damaged_config_is_named(tmp_path, text):
    folder = model_folder(tmp_path / "a")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        check_model_folder(folder)


def test_weights_that_are_whole_numbers_are_refused_unless_the_config_says_why(tmp_path):
    folder = model_folder(tmp_path / "a")
    save_file({"a.mask": torch.ones(2, dtype=torch.uint8)}, folder / "model.safetensors")
    check_model_folder(folder)  # a buffer of older models
    save_file({"a.weight": torch.ones(2, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds a\.weight as I8, and config\.json does not say how"):
        check_model_folder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 8}}))
    check_model_folder(folder)


def test_weights_that_are_cut_missing_or_pickled_are_named(tmp_path):
    folder = model_folder(tmp_path / "a")
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(whole), 7):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is cut off or damaged"):
            check_model_folder(folder)
    (folder / "model.safetensors").write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="cut off or damaged"):
        check_model_folder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing; pytorch_model\.bin is a pickle"):
        check_model_folder(folder)
