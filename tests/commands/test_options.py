"""The one way to parse: both forms, nearest names, values in bounds, the rest for the config."""

from importlib import import_module

import pytest

from sftlab.__main__ import COMMANDS, main, usage
from sftlab.commands.options import CommandParser, names, number, seeds, whole_number


def parser(takes_config=False):
    made = CommandParser("try", "Tries.", takes_config=takes_config)
    made.add_argument("--count", type=whole_number(1, 9), default=2)
    made.add_argument("--share", type=number(0, 1), nargs="?", const=0.7)
    made.add_argument("--names", type=names, default=[])
    return made


@pytest.mark.parametrize("words", [["--count", "3", "--names", "a, b"], ["--count=3", "--names=a, b"]])
def test_both_forms_are_the_same(words):
    options = parser().parse(words)
    assert (options.count, options.names, options.share) == (3, ["a", "b"], None)


@pytest.mark.parametrize("words", [["--num_parts", "3", "--dry-run"], ["--num-parts=3", "--dry_run"]])
def test_hyphens_and_underscores_are_the_same_in_a_commands_own_options_alone(words):
    made = CommandParser("try", "Tries.", takes_config=True)
    made.add_argument("--num_parts", type=whole_number(1, 9))
    made.add_argument("--dry-run", action="store_true")
    options, rest = made.split([*words, "--data.path=a-b_c.json"])
    assert (options.num_parts, options.dry_run, rest) == (3, True, ["--data.path=a-b_c.json"])


def test_an_option_may_stand_without_a_value_and_the_config_gets_the_rest():
    words = ["--share", "--schedule.k", "0.25", "--count=4", "--config=x.yaml", "--data.policy", "-1"]
    options, rest = parser(takes_config=True).split(words)
    assert options.share == 0.7 and options.count == 4
    assert rest == ["--schedule.k", "0.25", "--config=x.yaml", "--data.policy", "-1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cuont", "3"], "did you mean --count"),
        (["--cou", "3"], "no option --cou"),
        (["--count", "0"], "not a whole number from 1 to 9"),
        (["--count", "x"], "not a whole number from 1 to 9"),
        (["--count", "²"], "not a whole number from 1 to 9"),
        (["--share", "nan"], "not a number from 0 to 1"),
        (["--count"], "expected one argument"),
        (["stray"], "no argument stray"),
    ],
)
def test_a_mistake_is_one_message(words, said):
    with pytest.raises(ValueError, match=said):
        parser().parse(words)


def test_a_word_that_no_option_takes_is_not_the_configs():
    with pytest.raises(ValueError, match="'stray' belongs to no option"):
        parser(takes_config=True).split(["--config", "x.yaml", "stray"])


def test_seeds_are_whole_numbers():
    assert seeds("1, 2,3") == [1, 2, 3]
    with pytest.raises(Exception, match="whole number"):
        seeds("1,x")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"fit"}))
def test_every_command_has_help_and_refuses_what_it_does_not_know(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"python -m sftlab {name}" in capsys.readouterr().out
    assert main([name, "--no_such_option=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "fit"])
def test_help_fits_a_terminal(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = import_module(f"sftlab.commands.{name}").PARSER.format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, usage().splitlines())) <= 80


def test_a_sentence_of_several_lines_of_source_is_wrapped_as_one_and_a_layout_stays():
    long = "A folder that holds results of another model than the one named here " * 2
    notes = f"{long.strip()}\nis never written to.\nsftlab try a    one thing\nsftlab try b    another\n"
    help_ = CommandParser("try", "Tries.", notes=notes).format_help()
    assert "here is never written to." in " ".join(help_.split())
    assert "\nis never written to." not in help_ and "\nsftlab try a    one thing\nsftlab try b    another" in help_
