"""The table of phenomena: its runs are those of the shipped configs, and its numbers are what the runs scored."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from sftlab.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools_beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tool(name):
    loader = SourceFileLoader(name, str(ROOT / "tools" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dmt", "multi_task", "sequential", "mixed_sequential", "single"])
def test_its_runs_are_those_of_the_shipped_configs(name):
    measure, one, config = (
        tool("lab_phenomena"),
        tool("lab_run.py"),
        read_yaml(ROOT / "configs" / f"{name}.yaml", "--config"),
    )
    for ability, data in config["data"]["abilities"].items():
        given = {"path": "lab", "num_examples": one.SIZES[ability], "val_fraction": one.VAL_FRACTION}
        assert data["init_args"] == given
    assert config["data"]["batch"] == {"examples": one.EXAMPLES}
    assert config["data"]["max_length"] == one.MAX_LENGTH
    assert config["schedule"]["init_args"]["epochs"] == measure.EPOCHS
    assert (config["model"]["learning_rate"], config["model"]["path"]) == (measure.RATE, "lab:base")


def test_what_a_run_goes_on_from_is_trained_before_it():
    measure, done = tool("lab_phenomena"), set()
    for job in (job for phase in measure.PHASES for job in measure.jobs(phase)):
        assert {job.start, job.steps_of} - {""} <= done
        done.add(job.name)


def test_differences_are_taken_seed_by_seed_and_tested_problem_by_problem():
    table = tool("lab_table.py")
    right = {("math 1", 1): "1" * 40 + "0" * 60, ("mixed 1", 1): "0" * 30 + "1" * 10 + "0" * 60}
    right |= {("math 1", 2): "1" * 50 + "0" * 50, ("mixed 1", 2): "0" * 20 + "1" * 30 + "0" * 50}
    lines = {
        key: {"scores": {"math accuracy/exact@2": float(bits.count("1"))}, "right": {"math": bits}}
        for key, bits in right.items()
    }
    row = next(line for line in table.growth(lines, [1, 2]).splitlines() if line.startswith("| math, 1 "))
    assert "| 45.0 (" in row and "| 20.0 (" in row and "| -25.0 (" in row and "p < 0.001" in row
    assert row.endswith("| - |"), "no run at equal steps, nothing said"


def test_a_k_is_shipped_only_where_every_seed_has_it():
    table = tool("lab_table.py")
    scores = {f"{a} accuracy/exact@2": 50.0 for a in table.ABILITIES}
    lines = {(run, seed): {"scores": scores} for run, seed in (("k 0", 1), ("k 0", 2), ("k 0.0625", 1))}
    assert table.by_k(lines, (0, 1 / 16)) == {"k = 0": dict.fromkeys(table.ABILITIES, [50.0] * 3)}
