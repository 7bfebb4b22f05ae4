"""What users build on: public names, their signatures and the command lines, frozen; moved names say where they are.

A change here is a change for every user: raise the version, write it into CHANGELOG.md, then make the file again:

    python tests/test_public.py
"""

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sftlab
from sftlab import moved
from sftlab.__main__ import COMMANDS

FROZEN = Path(__file__).with_name("public.json")


def surface() -> dict[str, dict[str, list[str]]]:
    """Names with the parameters of each, and commands with the options of each."""
    parameters = {}
    for name in sftlab.__all__:
        value = getattr(sftlab, name)
        parameters[name] = list(inspect.signature(value).parameters) if callable(value) else []
    options = {}
    for name in COMMANDS:
        parser = getattr(import_module(f"sftlab.commands.{name}"), "PARSER", None)
        actions = parser._actions if parser else []
        options[name] = sorted(word for a in actions for word in (a.option_strings or [a.dest]) if word != "-h")
    return {"names": parameters, "commands": options}


def test_names_signatures_and_command_lines_are_as_released():
    assert surface() == json.loads(FROZEN.read_text()), "see the top of this file"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sftlab, sys; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_told_with_those_there_are():
    with pytest.raises(AttributeError, match="MathData"):
        sftlab.MathsData  # noqa: B018


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_a_moved_module_works_and_tells_its_new_place(old):
    sys.modules.pop(f"sftlab.{old}", None)
    with pytest.warns(FutureWarning, match=rf"sftlab\.{old} is sftlab\."):
        module = import_module(f"sftlab.{old}")
    place = import_module(f"sftlab.{moved.MODULES[old].split(' and ')[0]}")
    names = [name for name, value in vars(place).items() if getattr(value, "__module__", "") == place.__name__]
    assert names and all(getattr(module, name) is getattr(place, name) for name in names)
    with pytest.raises(AttributeError, match="has moved"):
        module.no_such_name  # noqa: B018


def test_readers_work_and_are_told_where_they_are():
    with pytest.warns(FutureWarning, match=r"sftlab\.data\.readers\.Reader now"):
        from sftlab.data.conversation import Reader
    assert Reader is sftlab.Reader


def test_an_old_class_path_in_a_config_works():
    from sftlab.cli import config_problems

    reader = {"class_path": "sftlab.data.conversation.AlpacaReader"}
    ability = {"class_path": "MathData", "init_args": {"path": "x.jsonl", "reader": reader}}
    with pytest.warns(FutureWarning, match=r"sftlab\.data\.readers\.AlpacaReader now"):
        assert config_problems({"data": {"abilities": {"math": ability}}, "schedule": "MultiTask"}) == []


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=1) + "\n")
