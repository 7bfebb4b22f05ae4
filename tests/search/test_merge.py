"""Merged specialists: the average of their weights, and nothing else of them is changed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftlab.search.merge import merge_weights


def write_model(folder, value, size=3):
    folder.mkdir()
    tensors = {"w": torch.full((size, 2), value), "half": torch.full((2,), value, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def test_weights_are_averaged_by_share(tmp_path):
    parts = [write_model(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 3.0), ("c", 100.0))]
    merge_weights(dict(zip(parts, (0.25, 0.75, 0.0), strict=True)), tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(found["w"], torch.full((3, 2), 2.5))
    assert found["half"].dtype == torch.bfloat16 and found["half"].tolist() == [2.5, 2.5]
    assert (tmp_path / "merged" / "config.json").is_file()


def test_models_of_another_shape_are_refused(tmp_path):
    parts = {write_model(tmp_path / "a", 1.0): 0.5, write_model(tmp_path / "b", 1.0, size=4): 0.5}
    with pytest.raises(ValueError, match="have different tensors"):
        merge_weights(parts, tmp_path / "merged")
