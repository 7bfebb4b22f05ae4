"""Which setting is best, for any study, weights and budget; values as written; studies side by side."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import Maker, k_study, leave_one_out_study

from sftlab.report.beside import write_beside
from sftlab.report.evidence import Point, read_evidence
from sftlab.report.fronts import budget_figure
from sftlab.report.heat import HeatBlock, heat_figure
from sftlab.report.write import write_report


def numbers(page: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((page.parent / f"{name}.csv").open()))


def rates_study(folder: Path, tokens: dict[str, int] | None = None) -> Path:
    """Two factors of which none is k: math likes a high learning rate, general a low one."""
    maker = Maker("rates", [], {"rate": [1e-5, 0.3], "size": ["small", "large"]}, [1, 2])
    maker.head["written"] = {"rate": ["1/100000", "0.3"], "size": ["small", "large"]}
    for rate in (1e-5, 0.3):
        for size in ("small", "large"):
            lift = 0.1 * (size == "large")
            truth = {"math": 0.2 + lift + 0.5 * (rate == 0.3), "general": 0.2 + lift + 0.5 * (rate == 1e-5)}
            for seed in (1, 2):
                maker.run("multi", seed, {"rate": rate, "size": size}, [("all", [], truth)], 2000, noise=0)
    for cost in maker.costs:
        for stage in cost["stages"]:
            stage["tokens"] = (tokens or {}).get(cost["factors"]["size"], 1000)
    return maker.write(folder)


@pytest.mark.parametrize(
    ("weights", "best"),
    [({"math": 9.0}, "multi rate=0.3 size=large"), ({"general": 9.0}, "multi rate=1/100000 size=large")],
)
def test_the_best_setting_of_any_study_follows_the_weights(tmp_path: Path, weights: dict, best: str) -> None:
    page = write_report(rates_study(tmp_path / "s"), weights)
    assert f"<b>{best}</b>" in page.read_text()
    table = numbers(page, "setting-choice")
    assert table[0]["setting"] == best and len(table) == 4 and float(table[0]["share_best"]) > 0.95
    assert "Budgets differ" not in page.read_text()
    assert "(Pareto front): multi rate=1/100000 size=large, multi rate=0.3 size=large." in page.read_text()


def test_budgets_stand_beside_and_a_difference_is_told(tmp_path: Path) -> None:
    page = write_report(rates_study(tmp_path / "s", {"small": 1000, "large": 2_500_000}), {"math": 2.0})
    text = page.read_text()
    assert "Budgets differ: 1K (multi rate=1/100000 size=small) to 2.5M tokens (multi rate=1/100000 size=large)" in text
    assert "With fewer tokens than its 2.5M, the best are: multi rate=0.3 size=small (1K tokens" in text
    row = numbers(page, "setting-choice")[0]
    assert (row["tokens"], row["supervised_tokens"], row["steps"]) == ("2500000", "40000", "100")


def test_values_are_shown_as_they_were_written(tmp_path: Path) -> None:
    evidence = read_evidence(rates_study(tmp_path / "s"))
    assert evidence.text("rate", 1e-5) == "1/100000" and evidence.tick("rate", 0.3) == "0.3"
    assert str(evidence.groups[0]) == "multi rate=1/100000 size=small"


def test_points_tell_their_runs_when_pointed_at(tmp_path: Path) -> None:
    page = write_report(k_study(tmp_path / "k", seeds=(1, 2)))
    text = page.read_text()
    assert 'class="spot"' in text and "2 seeds, n = 200 problems each" in text
    assert "dmt/k=0.0625/seed=2</tspan>" in text and "95 % interval</tspan>" in text
    assert "spot" not in (page.parent / "k.svg").read_text(), "the file alone is static"


def test_a_curve_along_any_factor(tmp_path: Path) -> None:
    study = rates_study(tmp_path / "s")
    head = json.loads((study / "study.json").read_text())
    entry = {"class_path": "Curve", "init_args": {"axis": "rate"}}
    (study / "study.json").write_text(json.dumps(head | {"figures": [entry]}))
    page = write_report(study, {"math": 3.0, "general": 1.0})
    assert "Best rate (large) for weights math=3, general=1: <b>0.3</b>" in page.read_text()
    assert len(numbers(page, "rate")) == 8


def test_studies_side_by_side(tmp_path: Path) -> None:
    a, b = rates_study(tmp_path / "a"), rates_study(tmp_path / "b", {"small": 5000, "large": 5000})
    rows = [json.loads(line) for line in (b / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["factors"] == {"rate": 0.3, "size": "small"} and row["ability"] == "general":
            row |= {"value": 0.9, "low": 0.88, "high": 0.92}
    (b / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_beside([a, b], {"math": 1.0})
    text = page.read_text()
    assert page.is_relative_to(a / "report") and "Best setting of all for equal weights" in text
    shared = numbers(page, "shared-table")
    beyond = {(row["setting"], row["ability"]) for row in shared if row["verdict"] == "more than noise"}
    assert len(shared) == 8 and beyond == {("multi rate=0.3 size=small", "general")}
    assert "Budgets differ between" in text
    with pytest.raises(ValueError, match="named twice"):
        write_beside([a, a / "."])
    other = leave_one_out_study(tmp_path / "c")
    nothing_shared = write_beside([a, other]).read_text()
    assert nothing_shared.count("has no setting in common with") == 2, "above, and under its own title"
    lines = (other / "results.jsonl").read_text().replace('"task": "lab_', '"task": "other_')
    (other / "results.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="no score in common"):
        write_beside([a, other])


def test_names_in_a_crowd_do_not_cover_each_other_and_the_best_is_named():
    points = [
        (f"setting number {i}", 1000 + 10 * i, Point(0.5 + i / 1000, 0.4, 0.6, 0.1, {1: 0.5}), True) for i in range(30)
    ]
    figure, spots = budget_figure(
        [*points, ("cheap", 10, Point(0.1, 0.1, 0.1, 0.0, {1: 0.1}), True)], "setting number 7"
    )
    figure.canvas.draw()
    texts = figure.axes[0].texts
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert {"setting number 7", "cheap"} <= {text.get_text() for text in texts} and len(spots) == 31


@pytest.mark.parametrize(("name", "row", "count"), [("dmt k=1/256", "specialised", 6), ("b" * 48, "s" * 48, 1)])
def test_a_heat_map_holds_its_names_and_all_of_its_rows(name, row, count):
    blocks = [HeatBlock(name, [row] * 2, np.full((2, 3), 0.5), [["80.5*"] * 3] * 2) for _ in range(count)]
    figure, _ = heat_figure([*blocks, HeatBlock("one", ["all"], np.full((1, 3), 0.5), [["1"] * 3])], ["a", "b", "c"])
    figure.savefig(io.BytesIO(), format="png")
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= figure.bbox.width
    cells = [patch.get_y() + patch.get_height() for patch in axes.patches]
    assert axes.get_ylim()[0] >= max(cells) - 1e-9


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("figures", [[], ["k"]])
def test_nothing_is_chosen_where_all_settings_score_the_same(tmp_path: Path, score: float, figures: list[str]) -> None:
    maker = Maker("flat", figures, {"k": [0.0, 0.25, 1.0]}, [1, 2])
    for k in maker.head["factors"]["k"]:
        for seed in (1, 2):
            truth = dict.fromkeys(("math", "code", "general"), score)
            maker.run("dmt", seed, {"k": k}, [("all", ["general"], truth)], 50, noise=0)
    study = maker.write(tmp_path / "a")
    page = write_report(study)
    text = page.read_text()
    assert f"have the same weighted mean, {score:.1%}: {'train longer' if score == 0 else 'ask harder'}" in text
    assert "can be chosen" in text and not re.search("Best (setting|k)|Pareto|Ringed", text)
    shares = [float(row["share_best"]) for row in numbers(page, "k-front-choice" if figures else "setting-choice")]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    maker.head["study"] = "other"
    beside = write_beside([study, maker.write(tmp_path / "b")]).read_text()
    assert "Nothing can be chosen for equal weights: all 6 settings" in beside and "Best setting" not in beside


def test_abilities_trained_alone_are_no_settings_to_choose_from_unless_they_are_weighed(tmp_path: Path) -> None:
    maker = Maker("alone", ["scaling"], {"fraction": [0.25, 1.0]}, [1])
    for ability in ("math", "code"):
        for fraction in (0.25, 1.0):
            truth = {name: 0.5 * fraction if name == ability else 0.1 for name in ("math", "code")}
            maker.run(f"single_{ability}", 1, {"fraction": fraction}, [(ability, [ability], truth)])
    study = maker.write(tmp_path / "s")
    assert "Which setting" not in write_report(study).read_text()
    assert (
        "Best setting for weights math=2, code=1: <b>single_math fraction=1</b>"
        in write_report(study, {"math": 2.0}).read_text()
    )
    maker.run("mixed", 1, {"fraction": 1.0}, [("all", ["math", "code"], {"math": 0.4, "code": 0.4})])
    assert "Which setting" in write_report(maker.write(tmp_path / "t")).read_text()


def test_an_ability_that_could_not_be_graded_is_named_and_no_zero(tmp_path: Path) -> None:
    folder = rates_study(tmp_path / "s")
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["ability"] == "math" and row["seed"] == 2 and row["factors"]["rate"] == 0.3:
            row.update(value=None, standard_error=None, low=None, high=None)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(folder).read_text()
    assert re.search(
        r"No answer could be graded for [^.]*\bmath\b[^.]* in 2 of 8 runs, which is not a score of 0", page
    )
    assert "multi/rate=0.3/size=small/seed=2" in page
