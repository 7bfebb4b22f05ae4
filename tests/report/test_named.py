"""Figures that a study file names: by name, by class with one's own runs, by a user's class path; and mistakes."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import ABILITIES, FRACTIONS, STUDIES, Maker, mixed_study

from sftlab.report.named import FIGURES, figures_of
from sftlab.report.section import Figure
from sftlab.report.write import write_report

OWN = """
from sftlab import Evidence, Figure, Section, Table


class Ladder(Figure):
    config_arguments = ("first",)

    def __init__(self, first: str, most: int = 3) -> None:
        self.first, self.most = first, most

    def section(self, evidence: Evidence) -> Section:
        rows = [[str(group), str(len(evidence.results_of(group)))] for group in evidence.groups][: self.most]
        table = Table("rungs", "Rungs", ["", "scores"], rows)
        return Section("my ladder", "A ladder", [f"{self.first} first"], [table])


class NoSection(Figure):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_figures.py").write_text(OWN)
    (tmp_path / "my_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_figures"
    for name in ("my_figures", "my_broken"):
        sys.modules.pop(name, None)


def numbers(page: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((page.parent / f"{name}.csv").open()))


def with_figures(study: Path, figures: list[Any]) -> Path:
    head = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(head | {"figures": figures}))
    return study


def test_every_short_name_is_a_figure() -> None:
    needed = {"curve": {"axis": "k"}}
    entries = [{"class_path": name, "init_args": needed.get(name, {})} for name in FIGURES]
    assert all(isinstance(figure, Figure) for figure in figures_of(entries, "here"))
    classes = [place.split(".")[1] for place in FIGURES.values() if place != "curve.Curve"]
    assert [type(figure).__name__ for figure in figures_of(classes, "here")] == classes


def renamed(study: Path, names: dict[str, str]) -> Path:
    """The same study with its configs called otherwise."""
    for file in ("results.jsonl", "costs.jsonl"):
        rows = [json.loads(line) for line in (study / file).read_text().splitlines()]
        for row in rows:
            row["config"] = names.get(row["config"], row["config"])
        (study / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return study


def test_a_figure_takes_the_names_of_ones_own_runs(tmp_path: Path) -> None:
    expected = numbers(write_report(mixed_study(tmp_path / "a", seeds=(1,))), "crossover")
    study = renamed(
        mixed_study(tmp_path / "b", seeds=(1,)), {"mixed": "soup", **{f"single_{a}": f"just_{a}" for a in ABILITIES}}
    )
    entry = {"class_path": "SingleAgainstMixed", "init_args": {"single": "just_{ability}", "mixed": "soup"}}
    page = write_report(
        with_figures(study, [entry, {"class_path": "Forgetting", "init_args": {"single": "just_{ability}"}}])
    )
    assert numbers(page, "crossover") == expected
    assert "config mixed" not in page.read_text() and len(numbers(page, "retention")) == 30


def test_one_config_with_the_ability_as_a_factor_stands_for_all_specialists(tmp_path: Path) -> None:
    maker = Maker("s", [], {"fraction": list(FRACTIONS), "source": list(ABILITIES)}, [1])
    for fraction in FRACTIONS:
        for ability in ABILITIES:
            factors = {"fraction": fraction, "source": ability}
            truth = {name: (0.6 if name == ability else 0.1) for name in ABILITIES}
            maker.run("alone", 1, factors, [("all", [], truth)], noise=0)
        maker.run("mixed", 1, {"fraction": fraction}, [("all", [], dict.fromkeys(ABILITIES, 0.7))], noise=0)
    study = with_figures(
        maker.write(tmp_path / "s"), [{"class_path": "SingleAgainstMixed", "init_args": {"single": "alone"}}]
    )
    drawn = numbers(write_report(study), "single-against-mixed")
    alone = {(row["ability"], float(row["fraction"])): float(row["mean"]) for row in drawn if row["line"] == "single"}
    assert len(alone) == 15 and all(value == pytest.approx(0.6, abs=0.12) for value in alone.values())


def test_a_users_own_figure(tmp_path: Path, own: str) -> None:
    study = with_figures(
        mixed_study(tmp_path / "s", seeds=(1,)), [{"class_path": "my_figures.Ladder", "init_args": {"first": "mixed"}}]
    )
    page = write_report(study)
    assert "mixed first" in page.read_text() and len(numbers(page, "rungs")) == 3


def args(name: str, **given: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": given}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("scalling", "there is no 'scalling'; did you mean scaling"),
        ("Strategy", "there is no 'Strategy'; did you mean Strategies"),
        ("pie", "there is no 'pie'; known are scaling, single_against_mixed"),
        (3, "3 is not a figure; write a name such as k"),
        ({"class": "k"}, "is not a figure; write a name"),
        ({"class_path": "k", "init_args": [1]}, "is not a figure; write a name"),
        (args("Scaling", axes="k"), "Scaling: it has no argument 'axes'; did you mean axis"),
        (args("Scaling", axis=3), "Scaling, axis: 3 is not str"),
        (args("Ratio", grids={"a": 1}), r"Ratio, grids: \{'a': 1\} is not Mapping\[str, str\]"),
        (args("Curve"), "Curve: give axis in init_args"),
        (args("Curve", axis="size"), "Curve, axis: the study has no factor 'size'; did you mean sizes"),
        (args("Strategies", rows=["dmt", "mixt"]), "rows: the study has no config 'mixt'; did you mean mixed"),
        (args("Strategies", rows={"dtm": "dmt"}), "no config 'dtm'; did you mean dmt"),
        (args("SingleAgainstMixed", single="only_{ability}"), r"no config 'only_\{ability\}'; known are"),
        ("no_such_module.Figure", "there is no module no_such_module"),
        ("my_figures.Lader", "my_figures has no Lader; did you mean Ladder"),
        ("my_figures.NoSection", "my_figures.NoSection is not a figure: derive it from sftlab.Figure"),
        ("my_broken.Figure", "there is no module not_there_at_all"),
        ("os.path.join", "is not a figure"),
        ("a b.c", "is not a class path"),
        (args("my_figures.Ladder", first="mixd"), "Ladder, first: .*did you mean mixed"),
        (args("my_figures.Ladder", first="dmt", most=True), "most: True is not int"),
    ],
)
def test_mistakes_are_told_with_the_nearest_name(own: str, entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        figures_of([entry], "s.yaml, figures", ["dmt", "mixed"], ["k", "sizes"])
    assert str(error.value).startswith("s.yaml, figures") and "\n" not in str(error.value)


def test_reports_and_their_figures_import_no_torch(tmp_path: Path) -> None:
    study = STUDIES["k"](tmp_path / "k", seeds=(1,))
    heavy = "[name for name in ('torch', 'transformers', 'lightning', 'datasets') if name in sys.modules]"
    code = "import sys, pathlib; from sftlab.report.write import write_report; "
    code += f"write_report(pathlib.Path({str(study)!r})); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
