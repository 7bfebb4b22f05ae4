"""TensorBoard's table of runs, as TensorBoard itself makes it of what runs leave."""

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from small import small_fit, small_mixture
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from sftlab.callbacks.metrics import JsonlLogger
from sftlab.callbacks.schedule import DMT

pytestmark = pytest.mark.usefixtures("records")


def test_settings_are_columns_and_of_all_curves_the_last_results_alone(records, tmp_path):
    lines = {}
    for name, k in (("low", 0.1), ("high", 0.25)):
        loggers = [TensorBoardLogger(str(tmp_path / name), name="", version=""), JsonlLogger(str(tmp_path / name))]
        _, lines[name] = small_fit(tmp_path / name, DMT(k=k, epochs=1), small_mixture(records), logger=loggers)
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    board, asked = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path)))), RequestContext()
    sessions = board.hparams_metadata(asked, "")
    table = board.experiment_from_metadata(asked, "", True, sessions, [])
    results = {f"val/loss/{ability}" for ability in ("math", "general")}
    assert {column.name.tag for column in table.metric_infos} == {f"result/{name}" for name in results}
    assert {column.name for column in table.hparam_infos if column.differs} >= {
        "general/math",
        "general/code",
        "stage",
        "run",
    }
    assert "model.path" not in {column.name for column in table.hparam_infos}, "its models are from scratch"
    last = board.read_last_scalars(asked, "", None)
    for name, mine in lines.items():
        assert "train/loss" in last[name], "the curves are where they were"
        ends = sorted({line["step"] for line in mine if "stage/seconds" in line})
        for stage, end in zip(("0-specialised", "1-general"), ends, strict=True):
            for result in results:
                (wanted,) = {line[result] for line in mine if result in line and line["step"] == end}
                assert last[f"{name}/after/{stage}"][f"result/{result}"].value == pytest.approx(wanted, rel=1e-6)
    assert sorted(sessions) == [
        f"{name}/after/{stage}" for name in ("high", "low") for stage in ("0-specialised", "1-general")
    ]
