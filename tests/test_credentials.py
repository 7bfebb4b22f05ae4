"""Credentials of a config: taken back to where they came from before anything is written, hidden in what is shown."""

import pytest
import yaml

from sftlab.credentials import HIDDEN, flat, unresolved

SECRET = "sk-0123456789abcdef"


def test_a_secret_of_the_environment_is_a_reference_again_and_other_values_stay(monkeypatch):
    monkeypatch.setenv("WANDB", SECRET)
    monkeypatch.setenv("JUDGE_TOKEN", f"{SECRET}-2")
    monkeypatch.setenv("DATA_FOLDER", "/data/of/mine")
    monkeypatch.setenv("OTHER_KEY", "/data/of")  # nobody asked for it
    asked = {
        "api_key": "${oc.env:WANDB}",
        "path": "${oc.env:DATA_FOLDER}/x",
        "header": "Bearer ${ oc.env:JUDGE_TOKEN,none}",
    }
    text = yaml.safe_dump({"api_key": SECRET, "path": "/data/of/mine/x", "header": f"Bearer {SECRET}-2"})
    written = yaml.safe_load(unresolved(text, [asked]))
    assert written == {**asked, "path": "/data/of/mine/x", "header": "Bearer ${oc.env:JUDGE_TOKEN}"}


def test_settings_are_listed_by_dotted_key_without_credentials():
    config = {"a": {"b": 1, "none": None, "rates": [0.9, 0.999]}, "c": [{"api_key": SECRET, "on": True}, {"x": "y"}],
              "url": "https://me:pass@host/v1?api_key=abcdef", "password": "", "empty": {}}  # fmt: skip
    assert dict(flat(config)) == {
        "a.b": 1, "a.rates": "[0.9, 0.999]", "c.0.api_key": HIDDEN, "c.0.on": True, "c.1.x": "y",
        "url": f"https://{HIDDEN}@host/v1?api_key={HIDDEN}", "password": "",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["--print_config", "--print_config=skip_default"])
def test_a_printed_config_has_references_in_the_place_of_secrets(how, monkeypatch, capsys, tmp_path):
    from sftlab.cli import LabCLI

    monkeypatch.setenv("DATA_TOKEN", "hf_0123456789abcdefghij")
    words = ["fit", "--config", "sftlab:dmt", "--data.abilities.math.path", "folder/${oc.env:DATA_TOKEN}", how]
    monkeypatch.setattr("sys.argv", ["sftlab", *words])
    with pytest.raises(SystemExit):
        LabCLI()
    printed = capsys.readouterr().out
    assert "hf_0123456789abcdefghij" not in printed
    assert yaml.safe_load(printed)["data"]["abilities"]["math"]["init_args"]["path"] == "folder/${oc.env:DATA_TOKEN}"
