"""A Ray cluster: what its nodes fit is what this machine fits; what dies there is run again, or told."""

import os
import signal
import sys
from argparse import Namespace
from types import ModuleType

import pytest
from chat_templates import CHATML, byte_tokenizer
from fitting import ROOT
from marked_fitter import Marked
from test_workers import TALKS, give, own_encoder, talk

from sftlab.commands.study import prepared_where
from sftlab.data import cluster
from sftlab.data import prepare as preparing
from sftlab.data.ability import MathData
from sftlab.data.cluster import cluster_in_use, prepared_on
from sftlab.data.mixture import MixtureData
from sftlab.data.prepare import BadLimit, prepare
from sftlab.ray_cluster import join

LIMIT = BadLimit("skip", 0.5, ["a.jsonl"])


@pytest.fixture(scope="module")
def nodes():
    """Two nodes of one core, joined once: each time takes Ray seconds."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:  # what the nodes inherit
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "data"))]))
        two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        two.add_node(num_cpus=1)
    handler = signal.getsignal(signal.SIGTERM)
    with prepared_on(two.address, "data.ray_address"):
        yield
    assert signal.getsignal(signal.SIGTERM) is handler and cluster_in_use() is None
    assert not sys.modules["ray"].is_initialized()
    two.shutdown()


@pytest.fixture
def on_nodes(nodes, monkeypatch, tmp_path):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "nodes"))
    monkeypatch.setattr(preparing, "_CHUNK", 4)


@pytest.fixture
def marks(monkeypatch, tmp_path):
    monkeypatch.setattr(preparing, "Fitter", Marked)
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def marked(encoder, marks):
    encoder.marks = str(marks)
    return encoder


def test_a_cluster_that_is_not_there_is_told_when_there_is_something_to_prepare(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path))
    found = prepare(give(TALKS), {"k": 1}, own_encoder(), 300, limit=LIMIT)
    with prepared_on("127.0.0.1:1", "data.ray_address"):
        assert prepare(give(TALKS), {"k": 1}, own_encoder(), 300, limit=LIMIT).uids == found.uids
        with pytest.raises(ValueError, match=r"data\.ray_address: no cluster at '127\.0\.0\.1:1'"):
            prepare(give(TALKS), {"k": 2}, own_encoder(), 300, limit=LIMIT)
    with pytest.raises(ValueError, match=r"no cluster at '127\.0\.0\.1:-5': '-5' is not the number of a port"):
        join("127.0.0.1:-5", "data.ray_address")


@pytest.mark.parametrize(
    ("named", "variable", "joined"), [("", "", "local"), ("", "auto", "auto"), ("auto", "", "auto")]
)
def test_without_an_address_no_cluster_is_joined_that_nobody_named(monkeypatch, named, variable, joined):
    ray, asked = pytest.importorskip("ray"), []
    monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    join(named, "--executor ray")
    assert asked == [joined]


def test_a_config_names_it_and_so_does_a_study_with_that_executor(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"query": "one and one?", "response": "two"}\n')
    data = MixtureData({"math": MathData(str(tmp_path / "a.jsonl"))}, ray_address="127.0.0.1:1")
    with pytest.raises(ValueError, match=r"data\.ray_address: no cluster at '127\.0\.0\.1:1'"):
        data.load(byte_tokenizer(CHATML))
    assert cluster_in_use() is None
    for executor, address in (("ray", "auto"), ("ray", ""), ("local", "auto")):
        with prepared_where(Namespace(executor=executor, ray_address=address)):
            named = getattr(cluster_in_use(), "address", "")
        assert named == (address if executor == "ray" else "")


@pytest.mark.slow
def test_an_entry_is_the_same_byte_for_byte_though_a_process_of_a_node_dies(on_nodes, marks, monkeypatch, tmp_path):
    talks = [*TALKS[:50], talk(3, "deadly"), *TALKS[50:]]
    there = prepare(give(talks), {"k": 1}, marked(own_encoder(), marks), 300, limit=LIMIT)
    assert (marks / "died").exists() and len(list(marks.iterdir())) == 3  # two nodes
    monkeypatch.undo()
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "here"))
    monkeypatch.setattr(preparing, "cluster_in_use", lambda: None)
    here = prepare(give(talks), {"k": 1}, own_encoder(), 300, limit=LIMIT)
    assert here.folder.name == there.folder.name and here.folder != there.folder
    for name in ("examples.arrow", "audit.json"):
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes()


@pytest.mark.slow
def test_what_nodes_cannot_import_is_fitted_here_and_told(on_nodes, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "only_here", ModuleType("only_here"))
    sys.modules["only_here"].Text = type("Text", (str,), {"__module__": "only_here"})
    unknown = own_encoder(CHATML)
    unknown.marks = sys.modules["only_here"].Text("")
    assert prepare(give(TALKS[:8]), {"k": 1}, unknown, 300).uids
    assert capfd.readouterr().err.count("cannot import a class of yours") == 1


@pytest.mark.slow
def test_a_task_that_always_dies_ends_in_words(on_nodes, marks, monkeypatch):
    monkeypatch.setattr(cluster, "_MOST_RETRIES", 0)
    with pytest.raises(ValueError, match=r"preparing data: a task on the Ray cluster at '.*' failed: WorkerCrashed"):
        prepare(give([*TALKS[:8], talk(1, "deadly always")]), {"k": 1}, marked(own_encoder(CHATML), marks), 300)


@pytest.mark.slow
def test_errors_are_told_as_elsewhere(on_nodes, monkeypatch):
    for talks, error in (
        ([*TALKS[:20], talk(1, "endless")], "builds more than 50,000,000 characters"),
        (TALKS, r"record 5 of a\.jsonl: .*not that word; mend it"),
    ):
        limit = BadLimit("skip" if "endless" in talks[-1].turns[1].text else "fail", 0.5, ["a.jsonl"])
        with pytest.raises(ValueError, match=error):
            prepare(give(talks), {"k": 1}, own_encoder(), 300, limit=limit)
    monkeypatch.setattr(cluster, "_versions", lambda: {"sftlab": "9", "tokenizers": "8", "jinja2": "7"})
    with pytest.raises(ValueError, match=r"node .* of the Ray cluster has sftlab .* \(not 9\), tokenizers"):
        prepare(give(TALKS), {"k": 2}, own_encoder(), 300, limit=LIMIT)
