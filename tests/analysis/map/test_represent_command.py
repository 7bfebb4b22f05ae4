"""``represent`` from a command line to files: which queries, what is written, which mistakes are told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from sftlab.analysis.map.figure import Panel
from sftlab.analysis.map.page import map_page
from sftlab.analysis.map.projection import Projection
from sftlab.analysis.map.queries import Query, choose_queries
from sftlab.analysis.map.separation import measure
from sftlab.commands import represent
from sftlab.data.ability import CodeData, GeneralData, MathData
from sftlab.data.conversation import Turn
from sftlab.data.mixture import MixtureData
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.report.exhibit import Exhibit, files_in


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Every test in a folder and with a cache of its own."""
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    monkeypatch.chdir(tmp_path)


def write_config(folder: Path, **ability: object) -> str:
    classes = {"math": "MathData", "code": "CodeData", "general": "GeneralData"}
    abilities = {
        name: {"class_path": cls, "init_args": {"path": "lab", "num_examples": 60, **ability}}
        for name, cls in classes.items()
    }
    config = {
        "seed_everything": 1,
        "data": {"abilities": abilities, "template": "vicuna_short", "max_length": 256, "batch": {"rows": 4}},
        "schedule": {"class_path": "DMT", "init_args": {"epochs": 1}},
        "model": {"path": "lab-small"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(folder / "config.yaml")


def write_model(folder: Path, **shape: int) -> None:
    torch.manual_seed(5)
    tokenizer = lab_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, **shape}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def call(*words: str) -> int:
    return represent.main([*words, "--num_queries", "12"])


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_checkpoints_to_files(tmp_path):
    config = write_config(tmp_path)
    write_model(tmp_path / "tuned")
    words = ["--checkpoints", f"lab-small,{tmp_path}/tuned", "--config", config, "--layer", "1.0"]
    assert call(*words, "--to", "first") == 0
    assert call(*words, "--to=second") == 0
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("map_tsne", "map_pca", "separation", "separation_abilities"):
        assert (first / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (first / f"{name}.svg").read_bytes() == (second / f"{name}.svg").read_bytes()
    points, again = lines_of(first / "points.jsonl"), lines_of(second / "points.jsonl")
    assert points == again and len(points) == 36
    assert [point["ability"] for point in points[::12]] == ["math", "code", "general"]
    assert set(points[0]["maps"]["t-SNE"]) == {"lab-small", "tuned"}
    figures = lines_of(first / "separation.jsonl")
    assert [(f["checkpoint"], f["layer"]) for f in figures] == [("lab-small", i) for i in range(4)] + [
        ("tuned", i) for i in range(3)
    ]
    assert all(f["cka"]["lab-small"]["cka"] is None or 0 < f["cka"]["lab-small"]["cka"] <= 1 for f in figures[4:])
    assert np.load(first / "hidden" / "tuned" / "layer_002.npy").shape == (36, 32)
    assert not list(tmp_path.glob(".*partial"))
    exhibit = Exhibit.read(first / "map.exhibit.json")
    *pictures, table = exhibit.parts
    assert {picture.path.stem for picture in pictures} >= {"map_tsne", "map_pca", "separation", "separation_abilities"}
    assert [row[1] for row in table.rows] == ["0", "1", "2", "3", "0", "1", "2"]
    assert [row["silhouette"] for row in table.numbers] == [f["silhouette"] for f in figures]
    assert exhibit.page == first / "map.html" and "lab-small, layer 3: silhouette" in exhibit.findings[0]


def test_a_run_of_a_study_is_drawn_for_its_report(tmp_path):
    study = tmp_path / "lightning_logs" / "mine"
    write_model(study / "runs" / "dmt" / "stages" / "0-all")
    (study / "stages.json").write_text("[]")
    config = write_config(tmp_path)
    (study / "runs" / "dmt" / "state.json").write_text("{}")
    for folder, name in (("0-all", study / "runs" / "dmt" / "stages" / "0-all"), ("dmt", f"{study.name}/runs/dmt")):
        assert call("--checkpoints", str(name), "--config", config) == 0
        assert study / "exhibits" / folder / "map.exhibit.json" in files_in(study / "exhibits", deep=True)


def test_a_mistyped_run_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "lightning_logs" / "dmt").mkdir(parents=True)
    with pytest.raises(ValueError, match="there is no lightning_logs/dtm; did you mean lightning_logs/dmt"):
        call("--checkpoints", "lightning_logs/dtm", "--config", write_config(tmp_path))


def test_the_screen_tells_queries_layers_and_template(tmp_path, capsys):
    assert call("--checkpoints", "before", "--config", write_config(tmp_path), "--pooling", "mean") == 0
    said = capsys.readouterr()
    assert "math: 12 queries" in said.out and "*2" in said.out and "probe by chance 33.3%" in said.out
    assert "before, template vicuna_short, queries read: 36 of 36" in said.err
    assert (tmp_path / "representations" / "before" / "map.html").is_file()


def test_random_weights_come_from_the_seed(tmp_path):
    config = write_config(tmp_path)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        call("--checkpoints", "lab-small", "--config", config, "--to", name, "--data.seed", "1",
             "--seed_everything", seed)  # fmt: skip
    states = [np.load(tmp_path / name / "hidden" / "lab-small" / "layer_003.npy") for name in "abc"]
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.allclose(states[0], states[2])
    again = [lines_of(tmp_path / name / "points.jsonl") for name in "ac"]
    assert [point["uid"] for point in again[0]] == [point["uid"] for point in again[1]]


def data_of(tmp_path: Path, **options: object) -> MixtureData:
    questions = [f"How many are {i} and {i + 1}?" for i in range(20)]
    math = [{"query": q, "response": f"so {a}\n#### {a}"} for q in questions for a in range(5)]
    (tmp_path / "rft.jsonl").write_text("".join(json.dumps(record) + "\n" for record in math))
    talks = [
        {"id": str(i), "conversations": [
            {"from": "human", "value": f"tell me of {i} " + "and on " * (200 if i % 2 else 1)},
            {"from": "gpt", "value": "yes"}, {"from": "human", "value": "more"}, {"from": "gpt", "value": "no"}]}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    abilities = {
        "math": MathData(str(tmp_path / "rft.jsonl")),
        "general": GeneralData(str(tmp_path / "talks.json")),
        "code": CodeData(num_examples=60),
    }
    data = MixtureData(abilities, template="vicuna_short", max_length=100, seed=1, **options)
    data.load(lab_tokenizer())
    return data


def test_queries_are_distinct_short_enough_nested_and_ranked(tmp_path):
    data = data_of(tmp_path)
    few, passed_over = choose_queries(data, 10)
    more, _ = choose_queries(data, 18)
    for name, ability in data.abilities.items():
        ours = [query for query in few if query.ability == name]
        assert ours == [query for query in more if query.ability == name][:10]
        assert len({query.text for query in ours}) == 10
        assert all(len(data.encoder.prompt_ids([Turn("user", query.text)])) <= 100 for query in ours)
        ranked = [uid.split("#")[0].split("/")[0] for uid in ability.pool(1).uids_N]
        places = [ranked.index(query.uid) for query in ours]
        assert places == sorted(places)
    assert passed_over["math"]["same text again"] > 0
    assert passed_over["general"]["prompt longer than max_length"] > 0
    assert all(query.text.startswith("tell me of") for query in few if query.ability == "general")


def test_too_few_queries_are_told(tmp_path):
    data = data_of(tmp_path)
    with pytest.raises(ValueError, match=r"'math' has 20; same text again: 80\. Give --num_queries 20"):
        choose_queries(data, 21)
    with pytest.raises(ValueError, match="9 are too few to measure anything; give 10 or more"):
        choose_queries(data, 9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --checkpoints"),
        (["--checkpoints", "no/such/folder"], "--checkpoints: no model could be loaded from 'no/such/folder'"),
        (["--checkpoints", "empty"], "empty is not a run folder, stage, checkpoint or Hugging Face folder"),
        (["--checkpoints", "lab-small", "--layer", "7"], r"'7' is not a layer; give 0 \(embeddings\) to 3"),
        (["--checkpoints", "lab-small", "--layer", "x"], "'x' is not a layer"),
        (["--checkpoints", "lab-small", "--pooling", "max"], "invalid choice: 'max'"),
        (["--checkpoints", "lab-small", "--num_queries", "many"], "'many' is not a whole number"),
        (["--checkpoints", "lab-small", "--to", "empty"], "empty exists; name a new folder"),
        (["--checkpoints", "nobody/knows", "--to", "empty"], "empty exists; name a new folder"),
        (["--checkpoints", "lab-small", "--num_queries", "61"], "'math' has 60. Give --num_queries 60"),
        (["--checkpoints", "lab-small", "--layer", "0"], "all queries have the same state"),
        (["--checkpoints", "lab-small", "--pool", "last"], "pool"),
    ],
)
def test_mistakes_are_told(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        represent.main(["--config", write_config(tmp_path), "--num_queries", "12", *words])


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(represent, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scikit-learn and matplotlib: pip install 'sftlab\[studies\]'"):
        call("--checkpoints", "lab-small", "--config", write_config(tmp_path))


def test_a_page_needs_nothing_and_no_text_becomes_markup():
    bad = '</script><script>alert(1)</script><img src="http://x/y.png">'
    queries = [Query(str(i), ("math", "code")[i % 2], bad if i == 3 else f"q{i}") for i in range(20)]
    map_N2 = np.random.default_rng(0).normal(size=(20, 2)) * [100, 1]
    figures = measure(map_N2, [query.ability for query in queries], "x", 1, 2)
    page = map_page("A <b> title", "c", queries, {"PCA": [Panel(bad, 1, 2, Projection("PCA", map_N2, "n"), figures)]})
    assert page.count("<script") == page.count("</script>") == 2
    assert "A &lt;b&gt; title" in page and "<img" not in page and "src=" not in page.split('id="data"')[0]
    held = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert held["queries"][3]["text"] == bad and held["panels"][0]["label"] == bad
    points_N2 = np.array(held["panels"][0]["maps"]["PCA"]["points"])
    assert points_N2.min() >= 0 and points_N2.max() <= 100
    stretch = np.ptp(points_N2, axis=0) / np.ptp(map_N2, axis=0)
    assert stretch[0] == pytest.approx(stretch[1], rel=0.02)  # proportions are kept


def test_real_queries(tmp_path, shared_data):
    paths = {
        "math": MathData(str(shared_data / "gsm8k" / "rft_schema_first2000.jsonl")),
        "code": CodeData(str(shared_data / "code_alpaca" / "code_alpaca_2k.json")),
    }
    data = MixtureData(paths, template="vicuna_v1.1", max_length=1024, seed=1)
    data.load(lab_tokenizer())
    queries, passed_over = choose_queries(data, 100)
    assert len({query.text for query in queries}) == 200
    assert passed_over["math"].total() < 20
