"""The manual comes with the package: every pointer to it leads to a page that ``sftlab docs`` prints."""

import io
import re
import subprocess
import tomllib

import pytest
import yaml
from fitting import ROOT

from sftlab.commands.docs import files, main, page_text, pages, rendered, title_of
from sftlab.screen import screen

FILES = [*(ROOT / "sftlab").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]


def test_every_page_is_listed_and_goes_into_a_wheel(capsys):
    there = sorted(path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(pages()) == there and main([]) == 0
    out = capsys.readouterr().out
    assert all(page in out and title_of(page) in out for page in there)
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["sftlab"]
    packed = {path for pattern in patterns for path in (ROOT / "sftlab").glob(pattern)}
    assert packed >= {ROOT / "sftlab" / "docs" / f"{page}.md" for page in there}
    assert packed >= set(files().values()) and {"slurm.sbatch", "kubernetes.yaml", "tour.py"} <= set(files())


def test_files_are_printed_as_they_are_and_what_a_wheel_lacks_is_said(capsys):
    for name, path in files().items():
        assert main([name]) == 0 and capsys.readouterr().out == path.read_text()
    subprocess.run(["bash", "-n", ROOT / "docs" / "clusters" / "slurm.sbatch"], check=True)
    assert {part["kind"] for part in yaml.safe_load_all((ROOT / "docs/clusters/kubernetes.yaml").read_text())} >= {
        "Job"
    }
    for page in pages():
        names_tools = "tools/" in (ROOT / "docs" / f"{page}.md").read_text()
        assert ("are in the project's repository" in page_text(page)) == names_tools, page


def test_a_page_is_printed_by_name_and_classes_with_what_they_take(capsys):
    assert main(["task"]) == 0 and "class " in capsys.readouterr().out
    text = page_text("configuration")
    assert ":::" not in text and "### MixtureData" in text and "max_length: Tokens in a packed row" in text
    assert "<!--" not in page_text("docs/coming-from.md")
    with pytest.raises(ValueError, match=r"no page trainig; did you mean training\?"):
        page_text("trainig")


def test_names_in_tables_are_whole_in_a_narrow_terminal():
    file = io.StringIO()
    screen(file=file, width=80, force_terminal=True, color_system=None).print(rendered(page_text("coming-from")))
    lines = file.getvalue().splitlines()
    assert "\u2026" not in file.getvalue() and max(map(len, lines)) <= 80 and len(lines) > 200


def test_pointers_lead_to_pages():
    texts = {path: path.read_text() for path in FILES}
    named = {name for text in texts.values() for name in re.findall(r"sftlab docs ([a-z][\w/.-]*\w)", text)}
    assert {"configuration", "lab", "extending/ability", "extending/task"} <= named <= {*pages(), *files()}
    assert not [path for path, text in texts.items() if re.search(r"docs/[\w/]+\.md", text)], "a wheel has no docs/"
    paths = {page: re.findall(r"(?<!/)configs/[a-z][\w/]+", page_text(page)) for page in pages() if page != "house"}
    assert not [page for page, found in paths.items() if found], "sftlab:NAME does where there is no configs/, too"
