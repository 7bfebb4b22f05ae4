"""A study, an exhibit or a page that a stranger wrote: shown as text, run by nobody, kept to its folder."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ABILITIES, Maker, leave_one_out_study

from sftlab.report.exhibit import Exhibit, Picture, Table, csv_of
from sftlab.report.page import guarded, policy, render
from sftlab.report.text import csv_text, markdown_text, slug
from sftlab.report.write import write_report

RUNS = '"><img src=x onerror=document.documentElement.id="pwned"><script>document.documentElement.id="pwned"</script>'
NASTY = (
    RUNS,
    "$\\frac{",
    "_hidden",
    "=cmd|' /C calc'!A0",
    "\x1b[2J\u202e",
    "a" * 3000,
    "\u6570\u5b66",
    "**b** | [x](javascript:1)",
)


def nasty_study(folder: Path) -> Path:
    """Every text of a study from outside, wherever it stands: title, factors, abilities, metrics, errors."""
    maker = Maker("s", ["k"], {"k": [0, 0.25], "size": list(NASTY)}, [1])
    for k in (0, 0.25):
        for text in NASTY:
            truth = {ability: 0.5 for ability in ABILITIES}
            maker.run("dmt", 1, {"k": k, "size": text}, [("a", [], truth), ("b", ["math"], truth)], 20)
    maker.head |= {"study": RUNS, "title": RUNS, "question": RUNS, "written": {"k": [RUNS, "1/4"], RUNS: []}}
    for row in maker.results:
        row |= {
            "run": row["run"][:40] + RUNS,
            "ability": row["ability"] + RUNS,
            "metric": RUNS,
            "problems": "../" * 9 + "etc/passwd",
        }
        row |= {"stage": row["stage"] + RUNS, "run": f"{row['run']}{len(row['factors']['size'])}{row['factors']['k']}"}
    for cost in maker.costs:
        cost |= {"status": "failed", "error": f"\x1b]0;T\x07{RUNS}\n=1+1"}
    maker.verdicts.clear()
    return maker.write(folder)


def nasty_exhibit(folder: Path) -> None:
    inside = folder / "exhibits" / 'x"><b onclick=1>'
    inside.mkdir(parents=True)
    picture = Picture(inside / "p.png", RUNS, RUNS)
    picture.path.write_bytes(b"\x89PNG")
    page = inside / "own.html"
    page.write_text(f"<!DOCTYPE html><html><body>{RUNS}</body></html>")
    table = Table("../../../out", RUNS, [RUNS, "=1"], [["=HYPERLINK(1)", RUNS]], [RUNS], [{RUNS: "=1", "n": -1}])
    Exhibit(RUNS, [RUNS], [picture, table], page).write(inside, "e")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of which every text is hostile."""
    root = tmp_path_factory.mktemp("root")
    study = nasty_study(root / "a" / "s")
    nasty_exhibit(study)
    before = {path for path in root.rglob("*") if study not in path.parents}
    page = write_report(study)
    assert {path for path in root.rglob("*") if study not in path.parents} == before, "written elsewhere"
    return page


@pytest.mark.slow
def test_nothing_of_a_strangers_study_becomes_markup(nasty: Path) -> None:
    page = nasty
    text = page.read_text()
    assert "<script" not in text and not re.search(r"<[^>]* on\w+=", re.sub(r'"[^"]*"', '""', text))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert all(
        re.fullmatch(r"[a-z0-9-]+\.(png|svg|csv|md|html)|summary\.txt", path.name) for path in page.parent.iterdir()
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", (page.parent / "summary.txt").read_text())
    for path in page.parent.glob("*.svg"):
        assert "<script" not in path.read_text() and "<img" not in path.read_text()
    for path in page.parent.glob("*.md"):
        assert "<script" not in path.read_text() and "<img" not in path.read_text()
    assert "root:" not in text


@pytest.mark.slow
def test_no_script_runs_in_a_browser(nasty: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    pages = [nasty, *nasty.parent.glob("exhibits-*.html")]
    assert len(pages) == 2
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}", "--dump-dom"]
    for page in pages:
        command = [chromium, *options, page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
        assert "<html" in dom and not re.search(r'<html[^>]*id="pwned"', dom)


@given(st.text(max_size=30))
def test_cells_are_never_formulas_and_names_are_always_safe(text: str) -> None:
    cell = csv_text(text)
    assert not re.match(r"[=+\-@\t\r]", cell) or re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?%?", cell)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text)) and len(slug(text)) <= 80
    assert "\n" not in markdown_text(text) and "<" not in markdown_text(text)


def test_numbers_of_a_csv_stay_numbers() -> None:
    rows = [{"a": -0.5, "b": "-3.5", "c": "=1+1", "d": "-64.0 pts", "e": float("nan"), "f": "-", "@g": "\t=1"}]
    (read,) = csv.DictReader(csv_of(rows).splitlines())
    assert read == {"a": "-0.5", "b": "-3.5", "c": "'=1+1", "d": "'-64.0 pts", "e": "", "f": "", "'@g": "'\t=1"}


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    study = leave_one_out_study(tmp_path / "s")
    (tmp_path / "secret.png").write_bytes(b"secret")
    inside = study / "exhibits"
    inside.mkdir()
    (inside / "p.png").symlink_to(tmp_path / "secret.png")
    (inside / "page.html").symlink_to(tmp_path / "secret.png")
    Exhibit("t", [], [Picture(inside / "p.png", "t", "")]).write(inside, "one")
    Exhibit("t", [], [], inside / "page.html").write(inside, "two")
    (inside / "three.exhibit.json").write_text(
        json.dumps({"title": "t", "findings": [], "parts": [], "page": "../../secret.png"})
    )
    text = write_report(study).read_text()
    assert text.count("which is not beside it") == 2 and "three.exhibit.json: no exhibit" in text
    assert "c2VjcmV0" not in text, "the file's content in base64"


def test_an_old_page_gets_our_policy_first() -> None:
    page = guarded("<!DOCTYPE html>\n<html><script>1</script>")
    assert page.startswith(f'<!doctype html>\n<meta http-equiv="Content-Security-Policy" content="{policy("map.js")}">')
    assert "script-src 'none'" in policy() and "unsafe" not in policy("map.js").split("script-src")[1].split(";")[0]


def test_the_policys_hash_is_that_of_the_script_in_the_page() -> None:
    import base64
    import hashlib

    page = render("map.html", "sftlab.analysis.map", "map.js", title="t", caption="c", data="{}")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("study.json", "[" * 100_000, "not JSON"),
        ("study.json", "[]", "not an object"),
        ("study.json", b"\xff\xfe", "not JSON"),
        ("results.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("results.jsonl", b"\xff\xfe", "no UTF-8 text"),
        ("results.jsonl", "7", "line 1: not an object"),
        ("costs.jsonl", '{"run": 1}', "line 1: run is 1, not str"),
    ],
)  # fmt: skip
def test_damaged_files_end_in_one_message(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    study = leave_one_out_study(tmp_path / "s")
    (study / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as error:
        write_report(study)
    assert file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["1e999", "1" + "0" * 400, "-1e999", "NaN"])
def test_numbers_without_sense_break_nothing(tmp_path: Path, value: str) -> None:
    study = leave_one_out_study(tmp_path / "s")
    lines = (study / "results.jsonl").read_text().splitlines()
    lines[0] = re.sub(r'"value": [\d.]+', f'"value": {value}', lines[0])
    (study / "results.jsonl").write_text("\n".join(lines))
    try:
        write_report(study)
    except ValueError as error:
        assert "results.jsonl, line 1: value" in str(error)
