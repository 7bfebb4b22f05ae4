"""Data sets of the hub: a stream gives what a download gives, at one commit, and is whole or refused."""

import io
import itertools
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import hub_server, point_at

from sftlab import GeneralData, MathData, MessagesReader
from sftlab.data.encoder import Encoder
from sftlab.data.hub_set import hub_set
from sftlab.data.records import content_hash, read_records
from sftlab.data.template import get_template
from sftlab.lab.tokenizer import lab_tokenizer

NUMBERS = itertools.count()


def rows(first, last):
    """Conversations, each tenth of which is bad."""

    def turns(n):
        answerer = "bad" if n % 10 == 9 else "assistant"
        return [{"role": "user", "content": f"Question {n}?"}, {"role": answerer, "content": f"{n} " * 9}]

    return [{"messages": turns(n), "source": "here" if n % 2 else None} for n in range(first, last)]


def jsonl(records):
    return "\n".join(map(json.dumps, records)).encode()


def parquet(records):
    packed = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), packed, row_group_size=500)
    return packed.getvalue()


def csv(records):
    names = list(records[0])
    lines = (",".join(str(row[name] or "").replace(",", ";") for name in names) for row in records)
    return "\n".join([",".join(names), *lines]).encode()


KINDS = {"jsonl": jsonl, "json": lambda records: json.dumps(records).encode(), "parquet": parquet, "csv": csv}


@pytest.fixture(scope="module")
def server():
    with hub_server() as server:
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The stand-in, and the name of a data set that is new to it."""
    point_at(server, monkeypatch, tmp_path / "hf")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.cut_after, server.num_bytes = None, 0
    hub_set.cache_clear()
    yield server, f"me/mine{next(NUMBERS)}"
    hub_set.cache_clear()


def push(hub, records=None, kind="jsonl", card=""):
    server, name = hub
    files = [rows(0, 1500), rows(1500, 2100)] if records is None else records
    named = {f"data/train-{n:02}.{kind}": KINDS[kind](part) for n, part in enumerate(files)}
    return server.push(name, {"README.md": f"---\n{card}\n---\n# Data\n".encode(), **named}, "v1")


def files_under(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(name, cache, monkeypatch, **options):
    monkeypatch.setenv("SFTLAB_CACHE", str(cache))
    ability = GeneralData(f"hub:{name}", MessagesReader(), max_bad_share=0.2, **options)
    ability.load_examples(Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer())), 512, "split")
    return ability


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_the_rows_of_a_download(hub, kind):
    push(hub, kind=kind)
    streamed = list(read_records(f"hub:{hub[1]}", streaming=True))
    assert streamed == list(read_records(f"hub:{hub[1]}@v1")) and len(streamed) == 2100
    part = list(read_records(f"hub:{hub[1]}::train[1400:1600]", streaming=True))
    assert part == list(read_records(f"hub:{hub[1]}::train[1400:1600]")) == streamed[1400:1600]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("change", ["fewer keys", "more keys", "other types"])
def test_files_that_differ_are_read_as_in_a_download_or_refused(hub, kind, change):
    later = rows(30, 40)
    for row in later:
        row |= {"fewer keys": {}, "more keys": {"extra": "more"}, "other types": {"source": 1.5}}[change]
        if change == "fewer keys":
            del row["source"]
    push(hub, [rows(0, 30), later], kind)

    def found(streaming):
        try:
            return list(read_records(f"hub:{hub[1]}", streaming))
        except ValueError as error:
            return [str(error)]

    streamed, whole = found(True), found(False)
    if streamed != whole:  # of what is no jsonl, ``datasets`` joins tables before it casts them
        assert kind != "jsonl" or isinstance(whole[0], str)
        assert streamed[0].endswith("without streaming it is downloaded first")


def test_streamed_examples_are_the_same_cache_entry_and_nothing_else_lies_on_the_disk(hub, tmp_path, monkeypatch):
    push(hub)
    streamed = prepared(hub[1], tmp_path / "one", monkeypatch, streaming=True, max_examples=50)
    kept = files_under(tmp_path / "hf")
    assert sum(map(len, kept.values())) < 10_000 and not [path for path in kept if path.suffix in (".arrow", ".jsonl")]
    hub_set.cache_clear()
    whole = prepared(hub[1], tmp_path / "two", monkeypatch, max_examples=50)
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
    assert streamed.pool(1).index_N.tolist() == whole.pool(1).index_N.tolist() and len(streamed.pool(1)) == 50
    assert sum(streamed.audit_counts().values()) >= 210 and streamed.audit_counts() == whole.audit_counts()
    before = hub[0].num_bytes
    again = prepared(hub[1], tmp_path / "two", monkeypatch, streaming=True)
    assert again.examples.folder == whole.examples.folder and hub[0].num_bytes == before


def test_the_first_rows_are_streamed_without_the_rest(hub):
    server, name = hub
    push(hub, [rows(n * 100, n * 100 + 100) for n in range(20)])
    whole = sum(len(data) for path, data in server.commits[name]["main"][1].items() if path.endswith("jsonl"))
    assert len(list(read_records(f"hub:{name}::train[:150]", streaming=True))) == 150
    assert server.num_bytes < 0.3 * whole
    assert list(read_records(f"hub:{name}::train[1990:5000]", streaming=True)) == rows(1990, 2000)
    assert not list(read_records(f"hub:{name}::train[9:3]", streaming=True))
    for split in ("train[:10%]", "train[-5:]", "train[:5]+train[9:]"):
        with pytest.raises(ValueError, match=r"cannot be streamed; a part of one is written train\[100:200\]"):
            list(read_records(f"hub:{name}::{split}", streaming=True))


def test_what_is_read_is_one_commit_which_is_told(hub, tmp_path, monkeypatch):
    old = push(hub, [rows(0, 20)])
    first = content_hash(f"hub:{hub[1]}")
    new = push(hub, [rows(0, 30)])
    assert len(list(read_records(f"hub:{hub[1]}", streaming=True))) == 20  # as it was hashed
    hub_set.cache_clear()
    assert content_hash(f"hub:{hub[1]}") != first == content_hash(f"hub:{hub[1]}@{old}")
    assert content_hash(f"hub:{hub[1]}@{new}:default:train") == content_hash(f"hub:{hub[1]}")
    told = prepared(hub[1], tmp_path, monkeypatch, streaming=True).notes()
    assert any(f"hub:{hub[1]}@{new}" in note for note in told)
    assert not prepared(f"{hub[1]}@{new}", tmp_path, monkeypatch, streaming=True).notes()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_connection_that_is_cut_leaves_no_examples(hub, kind, tmp_path, monkeypatch):
    push(hub, kind=kind)
    hub[0].cut_after = 40_000 if kind == "jsonl" else 4_000
    with pytest.raises(ValueError, match=rf"^hub:{hub[1]}: could not be loaded from the hub"):
        prepared(hub[1], tmp_path / "one", monkeypatch, streaming=True)
    assert not [path for path in files_under(tmp_path / "one") if path.suffix != ".lock"]
    hub[0].cut_after = None
    found = prepared(hub[1], tmp_path / "one", monkeypatch, streaming=True)
    assert len(found.examples) == 2100 - 210


def test_fewer_rows_than_the_card_says_are_refused(hub):
    card = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 100\n    num_examples: 40"
    push(hub, [rows(0, 30)], card=card)
    with pytest.raises(ValueError, match=r"after row 30: train has 40 rows by its card, 30 were read"):
        list(read_records(f"hub:{hub[1]}", streaming=True))
    with pytest.raises(ValueError, match="could not be loaded"):
        list(read_records(f"hub:{hub[1]}"))


def test_without_a_network_the_local_cache_is_read_where_it_is_what_was_asked_for(hub, monkeypatch):
    sha = push(hub, [rows(0, 20)])
    assert len(list(read_records(f"hub:{hub[1]}"))) == 20
    before = content_hash(f"hub:{hub[1]}")
    hub_set.cache_clear()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (f"hub:{hub[1]}", f"hub:{hub[1]}@{sha}"):
        assert content_hash(path) == before
        assert list(read_records(path)) == list(read_records(path, streaming=True)) == rows(0, 20)
    for other in ("v1", "0" * 40):
        with pytest.raises(ValueError, match=rf"the local cache holds {sha} of it; nothing says that this is {other}"):
            list(read_records(f"hub:{hub[1]}@{other}"))
    with pytest.raises(ValueError, match=r"hub:nobody/nothing: .*in the local cache"):
        list(read_records("hub:nobody/nothing"))


def test_what_is_not_there_and_what_is_no_hub_id_is_told(hub, tmp_path, monkeypatch):
    push(hub, [rows(0, 9)])
    for path, said in (
        ("hub:me/nothing", "RepositoryNotFound"),
        (f"hub:{hub[1]}@v9", "RevisionNotFound"),
        (f"hub:{hub[1]}:other", "other"),
        (f"hub:{hub[1]}::test", "test"),
        *((name, "a hub id is written") for name in ("hub:", "hub:../x", "hub:a/b/c", "hub:a@", "hub:/etc", "hub:https://x/y")),
    ):  # fmt: skip
        for streaming in (False, True):
            with pytest.raises(ValueError, match=said):
                list(read_records(path, streaming))
    monkeypatch.chdir(tmp_path)
    os.mkdir("squad")
    with pytest.raises(ValueError, match="folder squad here"):
        list(read_records("hub:squad"))


def test_streaming_is_for_hub_ids():
    for path, options in (("a.jsonl", {}), ("lab", {"num_examples": 9}), (None, {"num_examples": 9})):
        with pytest.raises(ValueError, match=r"streaming: .*it is for hub:<owner>/<name>"):
            MathData(path, streaming=True, **options)
