"""The table that ships stands beside runs of its own settings, and beside no others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sftlab.callbacks.measured import MEASURED, measured_table
from sftlab.cli import parse_objects

CONFIG = str(Path(__file__).parents[2] / "configs" / "dmt.yaml")


def table_of(*changes):
    objects = parse_objects(["--config", CONFIG, *changes])
    stages = objects.schedule.stages(list(objects.data.abilities))
    plan = SimpleNamespace(stages=[SimpleNamespace(stage=stage) for stage in stages])
    return measured_table(SimpleNamespace(data=objects.data, module=objects.model, plan=plan))


@pytest.mark.parametrize("changes", [[], ["--schedule.k", "0"], ["--schedule.k", "1", "--seed_everything", "7"]])
def test_a_run_of_its_settings_is_shown_every_k(changes):
    table = table_of(*changes)
    assert table is not None
    assert list(table.columns[0].cells) == list(json.loads(MEASURED.read_text())["scores"])
    assert [column.header for column in table.columns] == ["", "math", "code", "general"]


@pytest.mark.parametrize(
    "change",
    [
        ["--model.learning_rate", "1e-3"],
        ["--model.path", "lab:small"],
        ["--schedule.epochs", "2"],
        ["--schedule.specialised", "[math]"],
        ["--data.batch", "{examples: 8}"],
        ["--data.abilities.math.init_args.num_examples", "512"],
        ["--data.abilities.general.init_args.lab.overlap", "0.3"],
        ["--data.abilities.code.init_args.fraction", "0.5"],
        ["--data.policy", "EqualCount"],
        ["--model.adapter", "LoRA"],
        ["--model.lr_schedule", "Linear"],
        ["--model.warmup_steps", "3"],
        ["--model.neftune_alpha", "5"],
        ["--model.normalise", "example"],
    ],
)
def test_a_run_of_other_settings_is_shown_nothing(change):
    assert table_of(*change) is None
