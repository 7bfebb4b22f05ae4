"""What a config or a command line means otherwise than its author: told with its key, before anything is built."""

import pytest

from sftlab.config import build_chosen, find_problems, merged_config
from sftlab.data.ability import GeneralData
from sftlab.data.mixture import MixtureData


def problems(*arguments):
    return find_problems(merged_config(list(arguments)), {"data": MixtureData}, ())


@pytest.mark.parametrize("word", ["None", "none", "NONE"])
def test_none_as_a_word_is_no_system_prompt(word):
    given = {"class_path": "GeneralData", "init_args": {"path": "x.jsonl", "system": word}}
    with pytest.raises(ValueError, match=rf"system: '{word}' is a text here; write null, or leave it out"):
        build_chosen("data.abilities.general", GeneralData, given)
    given["init_args"]["system"] = "None of it is secret."
    assert build_chosen("data.abilities.general", GeneralData, given).system == "None of it is secret."


@pytest.mark.parametrize("word", ["010", "1:30", "-07"])
def test_numbers_of_the_command_line_are_in_base_ten(word):
    for option in ("max_length", "batch.examples"):
        [said] = problems(f"--data.{option}={word}")
        assert said == f"data.{option}: '{word}' is read in base 8 or 60; write the number itself"
    assert not problems("--data.max_length=10", "--data.batch.examples=0x10", f"--data.template={word}")
