"""``search`` from end to end with an executor whose jobs are done at once: a study, decisions, a report, proxies."""

import json
from pathlib import Path

import pytest
import yaml
from surfaces import Instant, Killed

from sftlab.commands.search import main
from sftlab.report.write import write_report

ABILITIES = {
    "math": {"class_path": "MathData", "init_args": {"path": "lab", "num_examples": 48}},
    "code": {"class_path": "CodeData", "init_args": {"path": "lab", "num_examples": 16}},
    "general": {"class_path": "GeneralData", "init_args": {"path": "lab", "num_examples": 32}},
}
MODEL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SHARES = {"math": [0, 1], "code": [0, 1], "general": [0, 1]}
MINE = ["--executor", "surfaces.Instant"]


def write_search(folder: Path, **changes) -> Path:
    """A search over the shares of three abilities, two steps a run."""
    base = {
        "seed_everything": 1,
        "data": {"abilities": ABILITIES, "template": "vicuna_short", "max_length": 128, "batch": {"examples": 8}},
        "schedule": {"class_path": "MultiTask", "init_args": {"steps": 2}},
        "model": {"config": {**MODEL, "vocab_size": 1024}, "tokenizer": "lab-base"},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    equal = dict.fromkeys(SHARES, 1)
    policy = {"class_path": "WeightedShares", "init_args": {"weights": equal, "max_repeats": 8}}
    content = {
        "search": "mix",
        "base": "base.yaml",
        "set": {"data.policy": policy},
        "factors": {"share": {"shares": SHARES, "step": 0.25}},
        "budget": {"runs": 9},
        "replicates": 1,
        "verify": 1,
        "batch": 2,
        **changes,
    }
    (folder / "mix.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "mix.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a search that ran without a break."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        assert main(["--config", str(write_search(folder)), *MINE]) == 0
    return folder / "lightning_logs" / "mix"


@pytest.mark.slow
def test_it_is_a_study_with_a_report_of_its_own(finished):
    found = json.loads((finished / "search.json").read_text())
    runs = {json.loads(line)["run"] for line in (finished / "costs.jsonl").read_text().splitlines()}
    assert len(runs) == found["num_runs"] <= 9
    assert yaml.safe_load((finished / "study.yaml").read_text())["base"] == ["../../base.yaml"]
    page = (finished / "report" / "index.html").read_text()
    assert "What the search found" in page and "proportional" in page
    assert "Which setting" not in page, "a second answer, without the constraints"
    drawn = {path.stem for path in (finished / "report").glob("search-*.png")}
    assert drawn == {"search-ternary", "search-slices", "search-changes", "search-front"}
    for line in found["decision"].replace("**", "").replace("'", "&#39;").split("\n"):
        assert f"<li>{line}</li>" in page.replace("<b>", "").replace("</b>", "")
    weighed = write_report(finished, {"math": 5.0}).read_text()
    assert "The search decided for its own weights (" in weighed and "Which setting" in weighed
    write_report(finished)
    shares = {trial["name"]: trial["shares"] for trial in found["trials"]}
    assert shares["proportional"] == [0.5, 0.25, 0.25] and shares["math_alone"] == [1, 0, 0]


@pytest.mark.slow
def test_proxies_are_held_against_the_runs(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parents[1])
    monkeypatch.setenv("SFTLAB_CACHE", str(finished.parents[1] / "cache"))
    for kind in ("held_out", str(finished)):
        assert main(["--config", "mix.yaml", "--proxy", kind]) == 0
    out = capsys.readouterr().out
    assert "rank correlation 1.00 (1.00 to 1.00)" in out, (
        "runs rank themselves, and Instant's losses fall as scores rise"
    )
    page = (finished / "report" / "index.html").read_text()
    assert "Proxy: held-out loss" in page and "Proxy: mix" in page
    with pytest.raises(ValueError, match="neither merge nor held_out nor the folder"):
        main(["--config", "mix.yaml", "--proxy", "margarine"])


@pytest.mark.slow
def test_killed_while_it_runs_it_goes_on_and_finds_the_same(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(finished.parents[1] / "cache"))
    config, mine = write_search(tmp_path), tmp_path / "lightning_logs" / "mix"
    monkeypatch.setattr(Instant, "started", 0)
    monkeypatch.setattr(Instant, "kill_at", 4)
    with pytest.raises(Killed):
        main(["--config", str(config), *MINE])
    assert not (mine / "search.json").exists()
    monkeypatch.setattr(Instant, "kill_at", 0)
    assert main(["--config", str(config), *MINE]) == 0
    for name in ("decisions.jsonl", "search.json"):
        assert (mine / name).read_text() == (finished / name).read_text()
    decision = json.loads((mine / "search.json").read_text())["decision"].replace("**", "")
    assert " ".join(decision.split()) in " ".join(capsys.readouterr().out.split()), "the terminal says it too"


@pytest.mark.slow
@pytest.mark.slow
def test_an_ability_that_could_not_be_graded_has_no_score_of_zero(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Instant, "ungraded", "code")
    with pytest.raises(ValueError, match=r"proportional with seed 1 has no graded answer of code"):
        main(["--config", str(write_search(tmp_path)), *MINE])


def test_jobs_can_be_printed_for_a_scheduler(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    config = write_search(tmp_path)
    assert main(["--config", str(config), "--executor", "print"]) == 0
    out = capsys.readouterr().out
    assert out.count("python -m sftlab study --job") == 6 and "the same search command" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs --config FILE"),
        (["--config", "mix.yaml", "--set.x", "1"], "no option --set.x"),
        (["--config", "mix.yaml", "--executor", "lokal"], "did you mean local"),
        (["--config", "absent.yaml"], "there is no file|no file"),
    ],
)
def test_a_wrong_command_line_is_one_message(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path)
    with pytest.raises(ValueError, match=said):
        main([*words] or ["--dry-run"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "absent.yaml"}, r"\.yaml, base: there is no file \S*absent.yaml$"),
        ({"set": {"model.learnig_rate": 1}}, "learnig_rate"),
        ({"factors": {"lr": {"keys": ["model.rate"], "low": 0.001, "high": 0.01, "scale": "log"}}}, "rate"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=said):
        main(["--config", str(write_search(tmp_path, **changes)), "--dry-run"])
