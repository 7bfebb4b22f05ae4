"""Configs that come with the package are found by name, from anywhere, and are the files of configs/."""

import tomllib
from importlib.resources import files

import pytest
from fitting import ROOT

from sftlab.cli import parse_objects
from sftlab.shipped import config_path, names, with_paths
from sftlab.study.study import read_study

SHIPPED = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def test_every_config_is_the_packages_and_goes_into_a_wheel():
    assert sorted(f"{name}.yaml" for name in names()) == SHIPPED
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["sftlab"]
    packed = {path for pattern in patterns for path in (ROOT / "sftlab").glob(pattern)}
    for name in SHIPPED:
        assert (files("sftlab") / "configs" / name).read_text() == (ROOT / "configs" / name).read_text()
        assert ROOT / "sftlab" / "configs" / name in packed


def test_a_config_is_named_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = parse_objects(["--config", "sftlab:paper/dmt", "--config=sftlab:paper/counts.yaml"])
    assert objects.schedule.compile(objects.data, objects.model).num_steps == 3051 + 2031


def test_a_study_and_its_base_are_named_too(tmp_path):
    assert read_study(config_path("sftlab:studies/rq3")).name == "rq3"
    mine = tmp_path / "mine.yaml"
    grid = "{k: {keys: [schedule.k], values: [0, 1/4]}}"
    mine.write_text(f"base: sftlab:dmt\nneeds: [sftlab:studies/rq3]\ngrid: {grid}\n")
    study = read_study(mine)
    assert [run.config["schedule"]["init_args"]["k"] for run in study.runs] == [0, 0.25]
    assert study.needs == (config_path("sftlab:studies/rq3"),)


def test_an_unknown_name_lists_what_there_is_and_other_words_stay():
    with pytest.raises(ValueError, match=r"did you mean sftlab:dmt.*There are dmt, .*studies/rq3"):
        with_paths(["fit", "--config", "sftlab:dtm"])
    words = ["--run", "sftlab:dmt", "--config", "sftlab.yaml"]
    assert with_paths(words) == words
