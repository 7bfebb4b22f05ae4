"""Export of a model in training, shared by ranks: what the first one says to the others, however it ends."""

from types import SimpleNamespace

import pytest
import torch

from sftlab.model import export
from sftlab.model.weights import Weights, described


@pytest.mark.parametrize(
    ("error", "said"), [(None, ["a", None]), (OSError("full"), ["a", None]), (SystemExit(143), ["a"])]
)
def test_the_others_are_told_that_no_weight_comes_unless_a_signal_came_between(tmp_path, monkeypatch, error, said):
    heard = []
    weight = torch.zeros(2)

    def write_folder(folder, architecture, weights, rows, adapter):
        weights.take("a")
        if error is not None:
            raise error

    monkeypatch.setattr(export, "write_folder", write_folder)
    monkeypatch.setattr(export, "ledger", lambda *_: [])
    monkeypatch.setattr(export, "_live_weights", lambda _: Weights({"a": described(weight)}, lambda _: weight))
    strategy = SimpleNamespace(broadcast=heard.append, barrier=lambda _: None)
    trainer = SimpleNamespace(is_global_zero=True, strategy=strategy)
    module = SimpleNamespace(live_adapter=None, device_mesh=object())
    try:
        export.export_live(trainer, module, tmp_path / "x", tmp_path, None, 1)
    except BaseException as raised:
        assert raised is error
    assert heard == said
