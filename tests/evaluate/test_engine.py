"""An engine that a command starts: asked while it runs, gone afterwards, told of where it fails."""

import os
import sys
import time
from pathlib import Path

import pytest
from engine import ENGINE

from sftlab.callbacks.scores import ScoreAbilities
from sftlab.evaluate.engine import running_engine
from sftlab.tasks.likelihood import Likelihood
from sftlab.tasks.task import Problem, Sampling


def started_in(folder: Path) -> list[str]:
    """Processes whose command line names a folder."""
    lines = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)}
    return [str(path) for path, line in lines.items() if str(folder).encode() in line]


def test_an_engine_answers_for_the_folder_and_nothing_of_it_is_left(tmp_path):
    (tmp_path / "engine.py").write_text(ENGINE)
    command = f"{sys.executable} {tmp_path / 'engine.py'} {{model}} {{port}}"
    with running_engine(command, tmp_path / "stage") as backend:
        found = [one for group in backend.answer([Problem("a", ("hello",))], Sampling(8)) for one in group]
        assert started_in(tmp_path)
    assert [one.texts for one in found] == [(f"name of {tmp_path / 'stage'}: hello",)]
    deadline = time.monotonic() + 10
    while started_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not started_in(tmp_path)


def test_an_engine_that_fails_is_told_with_what_it_printed(tmp_path):
    (tmp_path / "engine.py").write_text("import sys; sys.exit('no room for this model')")
    command = f"{sys.executable} {tmp_path / 'engine.py'} {{model}} {{port}}"
    with pytest.raises(ValueError, match=r"(?s)exit status 1.*no room for this model"):
        running_engine(command, tmp_path).__enter__()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vllm serve {model}", "{port}"),
        ("absent-program {model} {port}", "no program 'absent-program'"),
        ("'{model} {port}", "quotation"),
    ],
)
def test_a_command_that_can_start_no_engine_is_refused(command, message):
    with pytest.raises(ValueError, match=message):
        ScoreAbilities(engine=command)


def test_a_task_that_looks_into_the_model_goes_with_no_engine():
    with pytest.raises(ValueError, match="looks into the model"):
        ScoreAbilities(tasks={"math": Likelihood("math.jsonl", "math")}, engine="sh {model} {port}")
