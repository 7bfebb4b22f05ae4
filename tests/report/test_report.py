"""Reports of made-up studies: what they say, that they need nothing else, and what they do with bad files."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fitting import ROOT
from synthetic import ABILITIES, STUDIES, Maker, k_study, leave_one_out_study, mixed_study, strategies_study

from sftlab.commands.report import print_summary, weights_of
from sftlab.lab.options import LabOptions
from sftlab.lab.predict import predicted_styles
from sftlab.report.evidence import number_of, point_of, read_evidence, text_of
from sftlab.report.exhibit import Exhibit, Picture, Table
from sftlab.report.paper_numbers import BENCHMARKS, TABLES
from sftlab.report.write import write_report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of study."""
    folder = tmp_path_factory.mktemp("studies")
    return {kind: write_report(make(folder / kind)) for kind, make in STUDIES.items()}


@pytest.mark.parametrize("kind", STUDIES)
def test_the_terminal_says_what_the_page_begins_with(reports, kind, capsys):
    print_summary(reports[kind])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "**" not in shown
    lines = (reports[kind].parent / "summary.txt").read_text().splitlines()
    text, terminal = Page(reports[kind]).text, " ".join(shown.split())
    assert len(lines) > 2 and " ".join(lines[1].split()) in terminal
    for line in lines:
        assert " ".join(line.removeprefix("  Warning: ").split()) in text


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.targets.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def rows_of(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", STUDIES)
def test_a_page_of_every_kind_needs_nothing_else(reports: dict[str, Path], kind: str) -> None:
    page = Page(reports[kind])
    assert not re.search(r"https?:|//[a-z]|@import|<script|<iframe|<object", page.html)
    assert len(page.ids) == len(set(page.ids)), "ids of figures collide"
    inside = [target for target in page.targets if target.startswith("#")]
    assert inside and not [target for target in inside if target[1:] not in page.ids]
    assert not re.findall(r"url\(#(?!" + "|".join(map(re.escape, page.ids)) + ")", page.html)
    files = [target for target in page.targets if not target.startswith(("#", "data:"))]
    assert files and all((reports[kind].parent / target).is_file() for target in files)
    assert {"png", "svg", "csv", "md"} == {target.rsplit(".")[-1] for target in files}
    assert page.tags.count("svg") == sum(target.endswith(".svg") for target in files)
    assert not list(reports[kind].parent.glob(".*"))
    assert all(word in page.text for word in ("What it shows", "Cost", "95 % interval"))


def test_chromium_opens_every_page_without_errors(reports: dict[str, Path], tmp_path: Path) -> None:
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None:
        pytest.skip("no Chromium here")

    def opened(page: Path) -> tuple[str, str]:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
        command = [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    broken = tmp_path / "broken.html"
    broken.write_text("<p>x<script>console.error('planted')</script>")
    assert "planted" in opened(broken)[1], "this Chromium does not tell of errors"
    together = tmp_path / "all.html"  # one start of the browser for all pages
    together.write_text("".join(f'<iframe src="{page.resolve().as_uri()}"></iframe>' for page in reports.values()))
    assert opened(together)[1] == ""
    dom, errors = opened(reports["strategies"])
    assert errors == "" and "mixed_sequential" in dom and dom.count("<svg") == 3


def test_the_same_study_gives_the_same_files(reports: dict[str, Path]) -> None:
    page = reports["k"]
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    write_report(page.parents[1])
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


def test_scaling_verdicts_follow_the_truth(reports: dict[str, Path]) -> None:
    verdicts = {(r["ability"], r["line"]): r["verdict"] for r in rows_of(reports["scaling"], "scaling-score-verdicts")}
    assert len(verdicts) == 9
    assert all(verdicts["code", size] == "irregular" for size in ("lab-tiny", "lab-small", "lab-base"))
    assert all(verdicts[a, s] in ("log-linear", "monotone") for a, s in verdicts if a != "code")
    fits = rows_of(reports["scaling"], "scaling-score-fits-table")
    slope = next(r for r in fits if (r["ability"], r["line"], r["form"]) == ("math", "lab-small", "log-linear"))
    assert float(slope["b"]) == pytest.approx(0.07, abs=0.012) and float(slope["a"]) == pytest.approx(0.83, abs=0.05)
    losses = rows_of(reports["scaling"], "scaling-loss-fits-table")
    power = next(r for r in losses if (r["ability"], r["line"], r["form"]) == ("math", "lab-tiny", "power law"))
    assert float(power["E_low"]) < 0.4 < float(power["E_high"]) and float(power["alpha_low"]) < 0.2 < float(
        power["alpha_high"]
    )
    page = Page(reports["scaling"])
    assert "single_code/fraction=1.0/size=lab-base/seed=3 (failed)" in page.text


def test_points_are_means_over_seeds_with_students_interval(tmp_path: Path) -> None:
    evidence = read_evidence(mixed_study(tmp_path / "s", seeds=(1, 2, 3)))
    panel = evidence.panels[0]
    group = next(g for g in evidence.groups if str(g) == "mixed fraction=1/16 size=lab-tiny")
    rows = [r for r in evidence.final if evidence.group_of(r.config, r.factors) == group and r.panel == panel]
    values = np.array([r.value for r in rows], float)
    point = evidence.point(panel, group)
    assert point and point.by_seed == {1: values[0], 2: values[1], 3: values[2]}
    half = 4.302653 * values.std(ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    over_problems = 1.959964 * np.sqrt(0.25 / 200 / 3)
    assert point.value == pytest.approx(values.mean())
    assert point.high - point.value == pytest.approx(max(half, over_problems), rel=0.05)
    one = point_of(rows[:1])
    assert (one.low, one.high) == (rows[0].low, rows[0].high)


def test_the_crossover_is_near_the_truth(reports: dict[str, Path]) -> None:
    rows = rows_of(reports["single_against_mixed"], "crossover")
    assert len(rows) == 6  # three abilities, two sizes
    assert sum(float(r["low"]) <= 1 / 16 <= float(r["high"]) for r in rows) >= 5
    assert all(1 / 64 < float(r["crossover"]) < 1 / 3 for r in rows)


def test_the_best_k_follows_the_weights(reports: dict[str, Path], tmp_path: Path) -> None:
    assert "Pareto front" in Page(reports["k"]).text
    study = k_study(tmp_path / "k")
    best = {}
    for weights in ({"general": 100.0}, {"general": 0.0}):
        page = write_report(study, weights)
        best[weights["general"]] = next(r["k"] for r in rows_of(page, "k-front") if r["best"] == "True")
        assert f"weights math=1, code=1, general={weights['general']:g}" in Page(page).text
    assert best[100.0] in ("0", "1/256", "1/64") and best[0.0] == "1"
    for bad, message in (
        ({"poems": 1.0}, "no ability poems"),
        ({"math": -1.0}, "none below 0"),
        (dict.fromkeys(ABILITIES, 0.0), "one above"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(study, bad)


def test_strategies_are_told_apart(reports: dict[str, Path]) -> None:
    verdicts = {(r["strategy"], r["ability"]): r["verdict"] for r in rows_of(reports["strategies"], "strategies-tests")}
    assert len(verdicts) == 18
    assert verdicts["sequential", "math"] == verdicts["mixed_sequential", "code"] == "worse"
    assert verdicts["sequential", "general"] == verdicts["mixed_sequential", "general"] == "inside noise"
    page = Page(reports["strategies"])
    assert "dmt/seed=3 (failed)" in page.text and "multi_task/seed=9 (missing)" in page.text
    assert "RuntimeError: loss is <nan> at step 12" in page.text and "<nan>" not in page.html
    assert "41.92/17.68/6.08" in page.text and "6.69 in v1 and 6.73 in v4" in page.text
    kept = {(r["group"], r["ability"]): float(r["retention"]) for r in rows_of(reports["strategies"], "retention")}
    assert kept["dmt", "math"] == pytest.approx(0.7 / 0.9, abs=0.1) and kept["sequential", "math"] < 0.15
    lost = {
        (r["group"], r["measure"], r["ability"]): r["mean"] for r in rows_of(reports["strategies"], "forgetting-table")
    }
    assert float(lost["mixed_sequential", "forgetting", "math"]) == pytest.approx(0.84, abs=0.06)
    assert lost["dmt", "forgetting", "general"] == ""  # trained last: nothing to forget yet


def test_retention_is_against_the_specialist_of_the_same_data(tmp_path: Path) -> None:
    maker = Maker("mixed", ["single_against_mixed"], {"fraction": [1], "general": ["whole", "filtered"]}, [1])
    alone = {"math": 0.5, "general": {"whole": 0.9, "filtered": 0.4}}
    maker.run("single_math", 1, {"fraction": 1}, [("all", ["math"], {"math": alone["math"]})], 2000, noise=0)
    for data, score in alone["general"].items():
        factors = {"fraction": 1, "general": data}
        maker.run("single_general", 1, factors, [("all", ["general"], {"general": score})], 2000, noise=0)
        mixed = {"math": 0.25, "general": score}
        maker.run("mixed", 1, factors, [("all", ["math", "general"], mixed)], 2000, noise=0)
    rows = rows_of(write_report(maker.write(tmp_path / "s")), "retention")
    kept = {(row["group"], row["ability"]): float(row["retention"]) for row in rows}
    assert len(kept) == 4
    for data in ("whole", "filtered"):
        assert kept[f"mixed fraction=1 general={data}", "general"] == pytest.approx(1, abs=0.1)
        assert kept[f"mixed fraction=1 general={data}", "math"] == pytest.approx(0.5, abs=0.1)


def test_cost_counts_reused_tokens_once(reports: dict[str, Path]) -> None:
    total = next(r for r in rows_of(reports["k"], "cost") if r["config"] == "total")
    # Six k and three seeds share stage 1 by seed: 15 of 18 first stages are taken over.
    assert int(total["tokens_reused"]) == 15 * 240_000
    assert float(total["saved_share"]) == pytest.approx(
        int(total["tokens_reused"]) / (int(total["tokens_reused"]) + int(total["tokens_trained"]))
    )


def test_equal_count_and_left_out_abilities(reports: dict[str, Path]) -> None:
    text = Page(reports["equal_count"]).text
    assert "general: equal count and equal proportion differ by more than noise at 1/256" in text
    verdicts = {
        (r["strategy"], r["ability"]): r["verdict"] for r in rows_of(reports["leave_one_out"], "leave-one-out-tests")
    }
    for (config, ability), verdict in verdicts.items():
        assert verdict == ("worse" if config == f"without_{ability}" else "inside noise")


def test_conflict_is_the_difference_to_the_specialist_with_or_without_the_factor(tmp_path: Path) -> None:
    predicted = {"math": {0.5: -10, 1: -30}, "general": {1: 5}}
    figure = {"class_path": "Conflict", "init_args": {"axis": "dial", "predicted": predicted}}
    maker = Maker("dial", [figure], {"dial": [0, 0.5, 1]}, [1, 2, 3])
    for seed in (1, 2, 3):
        maker.run("single_math", seed, {}, [("math", ["math"], {"math": 0.8})], 2000, noise=0.0)
        for dial in (0, 0.5, 1):
            alone = [("general", ["general"], {"general": 0.5 - 0.2 * dial})]
            maker.run("single_general", seed, {"dial": dial}, alone, 2000, noise=0.0)
            mixed = {"math": 0.8 - 0.3 * dial, "general": 0.5 - 0.2 * dial}
            maker.run("mixed", seed, {"dial": dial}, [("all", ["math", "general"], mixed)], 2000, noise=0.0)
    page = write_report(maker.write(tmp_path / "s"))
    rows = {(row["line"], row["ability"], float(row["dial"])): row for row in rows_of(page, "conflict")}
    for dial in (0, 0.5, 1):
        measured = rows["measured", "math", dial]
        assert float(measured["low"]) <= -0.3 * dial <= float(measured["high"])
        assert float(rows["measured", "general", dial]["mean"]) == pytest.approx(0, abs=0.03)
    assert float(rows["predicted", "math", 0.5]["mean"]) == -0.1
    text = Page(page).text
    assert re.search(r"math: mixing changes the score by .* at dial 1; conflict grows", text)
    assert re.search(r"general: mixing changes the score by .* at dial 1; no trend shown", text)


def test_the_labs_dial_is_drawn_beside_what_a_perfect_learner_loses() -> None:
    study = yaml.safe_load((ROOT / "configs/studies/overlap.yaml").read_text())
    abilities = yaml.safe_load((ROOT / "configs/multi_task.yaml").read_text())["data"]["abilities"]
    sizes = {name: ability["init_args"]["num_examples"] for name, ability in abilities.items()}
    (figure,) = study["figures"]
    for overlap in study["grid"]["overlap"]["values"]:
        styles = predicted_styles(LabOptions(overlap=overlap), [sizes])
        talk = overlap / 2 * sum(1 - styles[f"{name}-like talk"] for name in ("math", "code"))
        for ability, lost in {"math": 1 - styles["math"], "code": 1 - styles["code"], "general": talk}.items():
            assert figure["init_args"]["predicted"][ability][overlap] == pytest.approx(-100 * lost, abs=0.05)


def test_what_a_figure_lacks_is_listed(tmp_path: Path) -> None:
    study = leave_one_out_study(tmp_path / "s")
    head = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(
        json.dumps(head | {"figures": ["ratio", "k", "strategies", "scaling", "single_against_mixed"]})
    )
    text = Page(write_report(study)).text
    for lacking in (
        "config full_general",
        "no run with a factor named k",
        "config dmt",
        "factor named fraction",
        "config mixed",
    ):
        assert lacking in text


def test_a_study_in_which_all_failed_has_a_report(tmp_path: Path) -> None:
    study = strategies_study(tmp_path / "s", seeds=(1,))
    costs = [json.loads(line) for line in (study / "costs.jsonl").read_text().splitlines()]
    for cost in costs:
        cost |= {"status": "failed", "stages": [], "error": "killed"}
    (study / "costs.jsonl").write_text("".join(json.dumps(cost) + "\n" for cost in costs))
    (study / "results.jsonl").write_text("")
    text = Page(write_report(study)).text
    assert "0 of 7 runs done" in text and "dmt/seed=1 (failed)" in text and "killed" in text


def test_ratings_keep_their_scale(tmp_path: Path) -> None:
    study = leave_one_out_study(tmp_path / "s")
    rows = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["ability"] == "general":
            row |= {key: 10 * row[key] for key in ("value", "low", "high", "standard_error")}
            row |= {"best": 10.0, "task": "mt_bench", "metric": "rating"}
    (study / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(study)
    everything = [row["value"] / (row["best"] or 1) for row in rows if row["config"] == "all"]
    cells = next(
        line for line in (page.parent / "leave-one-out-table.md").read_text().splitlines() if line.startswith("| all")
    )
    assert re.search(r"\| \d\.\d\d \(\d\.\d\d to \d\.\d\d\) \|", cells)
    assert cells.endswith(f"| {sum(everything) / 3:.1%} |")
    assert "general: mt_bench" in Page(page).text


def test_what_tools_found_is_part_of_the_page(tmp_path: Path, reports: dict[str, Path]) -> None:
    study = leave_one_out_study(tmp_path / "s")
    maps, tags = study / "exhibits" / "map", tmp_path / "tags"
    for folder in (maps, tags):
        folder.mkdir(parents=True)
    picture = Picture(maps / "map.png", "Abilities in layer 15", "a <b> c")
    shutil.copy(reports["k"].parent / "k.png", picture.path)
    (maps / "map.html").write_text("<p>points</p>")
    Exhibit("Hidden states", ["They lie apart."], [picture], maps / "map.html").write(maps, "map")
    table = Table("tags", "Tags of general", ["tag", "conversations"], [["code | math", "12"]])
    Exhibit("What users ask for", ["12 of 40 dropped."], [table]).write(tags, "tags")
    left_out = {"data": {"abilities": {"general": {"init_args": {"drop": str(tags / "drop.jsonl")}}}}}
    runs = [json.loads(line) for line in (study / "costs.jsonl").read_text().splitlines()]
    for run in runs:
        config = study / "configs" / f"{run['run']}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(left_out))
        folder = study / "runs" / run["run"] / "exhibits"
        folder.mkdir(parents=True)
        drawn = Picture(folder / "change.png", "Change by layer", "norms")
        shutil.copy(picture.path, drawn.path)
        Exhibit(drawn.title, parts=[drawn]).write(folder, "change")

    page = Page(write_report(study))
    for words in ("Hidden states", "They lie apart.", "Abilities in layer 15", "a <b> c", "12 of 40 dropped."):
        assert words in page.text
    num_pictures = 1 + len({run["run"] for run in runs if run["seed"] == 1})
    assert sum(target.startswith("data:image/png;base64,iVBOR") for target in page.targets) == num_pictures
    assert page.text.count("What users ask for") == 3, "once, whatever number of runs: in contents, summary and place"
    assert (study / "report" / "exhibits-tags-tags-tags.md").read_text().count("code \\| math") == 1
    copied = (study / "report" / "exhibits-map-map.html").read_text()
    assert copied.endswith("\n<p>points</p>") and "Content-Security-Policy" in copied.splitlines()[1]

    picture.path.rename(maps / "mine.png")
    page = Page(write_report(study))
    assert "map.exhibit.json: it shows map.png, which is not beside it; run what wrote it again" in page.text
    assert sum(target.startswith("data:image/png;base64,iVBOR") for target in page.targets) == num_pictures, "mine"
    (maps / "map.exhibit.json").write_text("[")
    assert "map.exhibit.json: no exhibit (JSONDecodeError" in Page(write_report(study)).text


def _change(study: Path, **changes: Any) -> None:
    lines = (study / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[1]) | changes
    lines[1] = json.dumps({key: value for key, value in row.items() if value != "remove"})
    (study / "results.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "high"}, r"results\.jsonl, line 2: value is 'high', not float"),
        ({"ability": "remove"}, r"line 2: ability is missing"),
        ({"seed": True}, r"line 2: seed is True, not int"),
        ({"ability": "math", "task": "lab_math"}, "lab_math accuracy/exact@1 of all/seed=1 after all is there twice"),
    ],
)
def test_malformed_results_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    study = leave_one_out_study(tmp_path / "s")
    _change(study, **changes)
    with pytest.raises(ValueError, match=message):
        write_report(study)
    assert not (study / "report").exists()


def test_broken_files_are_refused(tmp_path: Path) -> None:
    study = leave_one_out_study(tmp_path / "logs" / "one")
    with pytest.raises(ValueError, match=r"no study \(it has no study.json\); .* studies beside it: one"):
        write_report(tmp_path / "logs" / "two")
    with (study / "costs.jsonl").open("a") as file:
        file.write('{"run": "half')
    with pytest.raises(ValueError, match=r"costs\.jsonl, line 5: not JSON"):
        write_report(study)
    head = json.loads((study / "study.json").read_text())
    (study / "results.jsonl").unlink()
    with pytest.raises(ValueError, match=r"results\.jsonl: no such file; run the study first"):
        write_report(study)
    (study / "study.json").write_text(json.dumps(head | {"seeds": 1}))
    with pytest.raises(ValueError, match=r"study\.json: seeds is 1, not tuple"):
        write_report(study)
    study = leave_one_out_study(tmp_path / "logs" / "one")
    (study / "study.json").write_text(json.dumps(head | {"figures": ["pie"]}))
    with pytest.raises(ValueError, match=r"study\.json, figures: there is no 'pie'; known are scaling"):
        write_report(study)


def test_an_axis_must_be_a_number(tmp_path: Path) -> None:
    study = k_study(tmp_path / "s", seeds=(1,))
    text = (study / "results.jsonl").read_text()
    (study / "results.jsonl").write_text(text.replace('"factors": {"k": 0.25}', '"factors": {"k": "1/4"}'))
    assert "1/4" in {row["k"] for row in rows_of(write_report(study), "k-front")}
    (study / "results.jsonl").write_text(text.replace('"factors": {"k": 0.25}', '"factors": {"k": "some"}'))
    with pytest.raises(ValueError, match="factor k: 'some' is not a number"):
        write_report(study)
    assert [text_of(x) for x in (0.0, 1 / 256, 0.25, 1, 0.3, 2.5, "lab")] == [
        "0",
        "1/256",
        "1/4",
        "1",
        "0.3",
        "2.5",
        "lab",
    ]
    assert number_of("1/256", "k") == 1 / 256


def test_the_papers_tables_are_whole() -> None:
    for table in TABLES.values():
        header, *rows = table.rows
        assert all(len(row) == len(header) for row in rows)
        assert all(len(table.scores(row[0], column)) == len(BENCHMARKS) for row in rows for column in header[1:])
    # Where the paper's tables describe the same models, they agree.
    strategies, k, mixed = TABLES["strategies"], TABLES["k"], TABLES["single_against_mixed"]
    for size in ("7B", "13B"):
        assert k.scores("0", size) == strategies.scores("mixed_sequential", size)
        assert k.scores("1/256", size) == strategies.scores("dmt", size)
    assert mixed.scores("1", "7B_mixed") == strategies.scores("multi_task", "7B")
    assert mixed.scores("1", "13B_mixed") != strategies.scores("multi_task", "13B")  # they do not: there is a note
    only = [strategies.scores(f"{name}_only", "33B")[i] for i, name in enumerate(ABILITIES)]
    assert tuple(only) == mixed.scores("1", "33B_single")


def test_weights_on_the_command_line() -> None:
    assert weights_of("math=1, code=.5,general=2") == {"math": 1.0, "code": 0.5, "general": 2.0}
    for bad in ("math", "math=", "=1", "math=1,,code=2", "math=high"):
        with pytest.raises(ValueError, match=r"--weights: .* is not an ability=number"):
            weights_of(bad)


def test_the_command(tmp_path: Path) -> None:
    study = k_study(tmp_path / "k", seeds=(1,))
    run = [sys.executable, "-m", "sftlab", "report"]
    done = subprocess.run([*run, str(study), "--weights", "math=2"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(f"\n\nReport: {study / 'report' / 'index.html'}\n")
    assert done.stdout.startswith("The replay fraction k\n  Best k for weights math=2, code=1, general=1: ")
    done = subprocess.run([*run, str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    light = "import sys; from sftlab.commands import report\ntry: report.main(['--help'])\nexcept SystemExit: pass\n"
    light += "print([name for name in ('torch', 'numpy', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n") and "--weights" in done.stdout
