"""Record files: streamed whole, broken ones named with the place."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data import records
from sftlab.data.records import BrokenRecord, read_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ROWS = [{"question": f"q{i} é", "answer": "1\n#### 2"} for i in range(5)]


@given(st.lists(VALUES, max_size=8), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_json_list_is_read_whole_wherever_blocks_end(tmp_path_factory, rows, block, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    before, records._BLOCK = records._BLOCK, block
    try:
        assert list(read_records(str(path))) == rows
    finally:
        records._BLOCK = before


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.csv", "a.parquet", "a.jsonl.zst"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    path = tmp_path / name
    text = json.dumps(ROWS) if ".jsonl" not in name else "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith(".csv"):
        lines = ["question,answer", *('"{question}","{answer}"'.format(**row) for row in ROWS)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(text.encode()))
    else:
        path.write_text("\ufeff" + text, encoding="utf-8")  # a byte order mark is no part of the text
    assert list(read_records(str(path))) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2', "truncated"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "ends at byte 19"),
        ("a.json", b'{"a": 1}', "list of records"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8 at byte 8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "not UTF-8 at byte 16"),
        ("a.json.gz", b"no gzip", "cannot be unpacked"),
        ("a.parquet", b"no parquet", "parquet"),
        ("a.txt", b"x", "must end in"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        list(read_records(str(path)))
    assert name in str(error.value)


def test_a_missing_file_and_a_hub_that_cannot_be_reached_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        list(read_records(str(tmp_path / "a.json")))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub:nobody/nothing"):
        list(read_records("hub:nobody/nothing"))


def test_one_broken_line_is_one_broken_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n\n{"a": 3}\n')
    rows = list(read_records(str(path)))
    assert rows[0] == {"a": 1} and rows[2] == {"a": 3}
    assert isinstance(rows[1], BrokenRecord) and "line 2" in rows[1].reason


@pytest.mark.slow
def test_memory_is_bounded_by_a_record_not_by_the_file(tmp_path):
    path = tmp_path / "big.json"
    talk = {
        "id": "a_0",
        "conversations": [{"from": "human", "value": "word " * 800}, {"from": "gpt", "value": "x" * 4000}],
    }
    with path.open("w") as file:
        file.write("[" + json.dumps(talk))
        for _ in range(15_000):
            file.write(",\n" + json.dumps(talk))
        file.write("]")
    code = (
        "import resource, sys; from sftlab.data.records import read_records\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in read_records(sys.argv[1]))\n"
        "print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, grown_mib = map(int, done.stdout.split())
    assert count == 15_001
    assert path.stat().st_size > 110 * 2**20
    assert grown_mib < 20
