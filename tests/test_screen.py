"""The terminal: texts are shown, never obeyed."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from sftlab.screen import complain, never_fail_to_print, screen, show, tell_progress, visible


@given(st.text(st.characters(codec=None), max_size=50))
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = visible(text)
    assert not [
        c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000
    ]
    assert len(shown) == len(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Cf")), max_size=50))
def test_other_texts_stay_as_they_are(text):
    assert visible(text) == text


def test_tables_show_names_with_markup_escapes_and_emoji_codes_as_they_are():
    file = io.StringIO()
    console = screen(file=file, width=80, force_terminal=True, color_system=None)
    table = Table("[/x]", title="[bold]\x1b[2J")
    table.add_row(":smile: [red]a[/red]")
    console.print(table)
    console.print("[/y]\x1b]0;title\x07")
    out = file.getvalue()
    assert "[/x]" in out and "[bold]␛[2J" in out and ":smile: [red]a[/red]" in out and "[/y]␛]0;title" in out


def test_a_terminal_without_the_characters_gets_escapes_instead_of_an_error():
    code = "from sftlab.screen import never_fail_to_print, show; never_fail_to_print(); show('\\u4f60 \\ud800')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "\\u4f60" in done.stdout


WORDS = "import sys; from sftlab.__main__ import console_script; sys.argv = ['sftlab', *sys.argv[1:]]; console_script()"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["docs"], ["runs"]])
def test_who_reads_no_more_of_what_is_printed_ends_the_command_without_a_word(tmp_path, words):
    (tmp_path / "lightning_logs" / "r").mkdir(parents=True)
    (tmp_path / "lightning_logs" / "r" / "metrics.jsonl").touch()
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WORDS, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


LOCALE = """
import locale, sys, types
from sftlab.__main__ import console_script
def main(words):
    print(words, locale.getpreferredencoding(False), open(sys.argv[2]).read(), sys.stdout.encoding)
sys.modules["sftlab.commands.docs"] = types.SimpleNamespace(main=main)
sys.argv = ["sftlab", "docs", *sys.argv[1:]]
console_script()
"""


def test_in_another_locale_texts_are_read_as_utf8_and_printed_as_it_can(tmp_path):
    file = tmp_path / "\u00fc.yaml"
    file.write_text("\u00e9", encoding="utf-8")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LOCALE, str(file)]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, check=True)
    assert done.stdout.decode("ascii").endswith("\\xfc.yaml'] utf-8 \\xe9 ascii\n")


def test_without_streams_nothing_is_said_and_no_file_takes_their_numbers(tmp_path):
    child = os.fork()
    if not child:
        for number in (0, 1, 2):
            os.close(number)
        sys.stdin = sys.stdout = sys.stderr = None
        never_fail_to_print()
        with (tmp_path / "data").open("w") as file:
            show("to nobody")
            complain("to nobody")
            tell_progress("to nobody", 1, 1)
            os._exit(0 if file.fileno() > 2 else 1)
    assert os.waitpid(child, 0)[1] == 0 and not (tmp_path / "data").read_bytes()


def test_progress_in_a_file_is_its_end_and_a_line_now_and_then(monkeypatch, capsys):
    now = iter(range(0, 400, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    for done in range(1, 7):
        tell_progress("planned", done, 6)
    lines = capsys.readouterr().err.split("\n")
    assert lines[-2:] == ["planned: 6 of 6", ""] and 2 <= len(lines) <= 5
    tell_progress("planned", 0, 6)
    assert capsys.readouterr().err == "planned: 0 of 6\n", "the first of many may take long"


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("100", 100), ("0", 80), ("wide", 80), ("3", 20)])
def test_a_file_is_as_wide_as_a_usual_terminal_or_as_columns_says(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    table = Table("a", "b")
    table.add_row("word " * 60, "word " * 60)
    screen(file=file).print(table)
    assert max(map(len, file.getvalue().splitlines())) == width
