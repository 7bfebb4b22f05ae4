"""Record files: streamed whole, broken ones named with the place."""

import csv
import gzip
import json
import os
import random
import re
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sftlab.data import columns, json_records, stream
from sftlab.data.records import BrokenRecord, content_hash, read_records

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
    before, stream._BLOCK = stream._BLOCK, block
    try:
        assert list(read_records(str(path))) == rows
    finally:
        stream._BLOCK = before


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
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    elif name.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(text.encode()))
    else:
        path.write_text("\ufeff" + text, encoding="utf-8")  # a byte order mark is no part of the text
    assert list(read_records(str(path))) == ROWS


def packed(raw, how, members):
    """The bytes packed as so many gzip members or zstd frames."""
    zstandard = pytest.importorskip("zstandard")
    pack = gzip.compress if how == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    step = -(-len(raw) // members)
    return b"".join(pack(raw[start : start + step]) for start in range(0, len(raw), step))


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("how", ["gz", "zst"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_packed_file_is_read_whole_or_told_to_be_cut_wherever_it_is_cut(tmp_path, how, members):
    path, whole = tmp_path / f"a.jsonl.{how}", packed(LINES, how, members)
    ends = (
        {len(packed(LINES[: -(-len(LINES) // members) * n], how, n)) for n in range(1, members)}
        if members > 1
        else set()
    )
    path.write_bytes(whole)
    assert list(read_records(str(path))) == ROWS
    for length in sorted(set(range(1, len(whole))) - ends):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"a\.jsonl\.{how}: (cannot be unpacked after byte \d|is packed)"):
            list(read_records(str(path)))


@given(st.sampled_from(["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.json"]), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_told_or_gives_what_it_held(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("damaged") / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, write_page_checksum=True)
        content = bytearray(path.read_bytes())
    else:
        content = bytearray(json.dumps(ROWS).encode() if name == "a.json" else packed(LINES, name[8:], 1))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = list(read_records(str(path)))
    except ValueError as error:
        assert type(error) is ValueError and name in str(error) and "\n" not in str(error).strip()
        return
    if name in ("a.jsonl.gz", "a.jsonl.zst"):  # these have a checksum over all
        assert found == ROWS


TWICE, DEEP = '{"a": 1, "b": {"c": "]}", "c": 2}}', '{"a": "[' + '", "b": ' + "[" * 3000 + "]" * 3000 + "}"


@given(st.lists(st.sampled_from(["TWICE", "DEEP", *ROWS[:2], 7, "x]"]), max_size=6), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_elements_that_are_json_and_no_record_are_broken_records_and_the_rest_is_read(tmp_path_factory, kinds, block):
    path = tmp_path_factory.mktemp("json") / "a.json"
    texts = [{"TWICE": TWICE, "DEEP": DEEP}[kind] if kind in ("TWICE", "DEEP") else json.dumps(kind) for kind in kinds]
    path.write_text(f"[{', '.join(texts)} ]\n")
    before, stream._BLOCK = stream._BLOCK, block * (100 if "DEEP" in kinds else 1)
    try:
        found = list(read_records(str(path)))
    finally:
        stream._BLOCK = before
    wrong = [row.reason for row in found if isinstance(row, BrokenRecord)]
    assert [row for row in found if not isinstance(row, BrokenRecord)] == [
        k for k in kinds if k not in ("TWICE", "DEEP")
    ]
    wanted = ["the key 'c' is there twice" if k == "TWICE" else "nested" for k in kinds if k in ("TWICE", "DEEP")]
    assert all(said in reason for said, reason in zip(wanted, wrong, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2', "ends at byte 18 .*truncated"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "ends at byte 19"),
        ("a.json", b'[{"a": 1},', "ends at byte 10"),
        ("a.json", b'[{"a": "b', "ends at byte 9"),
        ("a.json", b'{"a": 1}', "list of records"),
        ("a.json", b"", "list of records"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8 at byte 8"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', "line 2, column 1: more follows after the end"),
        ("a.json", b"[1]x", "character 4: more follows"),
        ("a.json", b"[1\n\n 2]", "line 3, column 2: not JSON: a comma"),
        ("a.json", b"[1,,2]", "character 4: not JSON: Expecting value"),
        ("a.json", b"[1,\n]", "line 2, column 1: a comma, and no element"),
        ("a.json", b"[,1]", "character 2: not JSON"),
        ("a.json", b'[{"a": oops}]', "character 8: not JSON"),
        ("a.json", b'[1,\n{"a": oops}' + b", 2" * 40 + b"]", "line 2, column 7: not JSON"),
        ("a.json", b"\0" * 100, "no text at byte 0"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "not UTF-8 at byte 16"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16.*byte 0.*iconv"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), "byte 1 .*UTF-16"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "packed by gzip: its name must end in .gz"),
        ("a.csv", b"PK\x03\x04 and more", "zip archive"),
        ("a.jsonl", b"a" * 257 + b"ustar\x0000", "tar archive"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.parquet", gzip.compress(b"{}", mtime=0), "packed by gzip"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>404</html>", "web page"),
        ("a.json.gz", b"no gzip", "cannot be unpacked"),
        ("a.jsonl.zst", b"garbage", "cannot be unpacked"),
        ("a.parquet", b"no parquet", "parquet"),
        ("a.parquet", b"", "parquet"),
        ("a.parquet.gz", b"x", "packed inside"),
        ("a.txt", b"x", "must end in .json, .jsonl, .csv, .parquet"),
        ("a.arrow", b"x", "must end in .json, .jsonl, .csv, .parquet"),
        ("a", b"x", "must end in"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is opened and never closed"),
        ("a.csv", b'"a,b\n1,2\n', "line 1: a quote"),
        ("a.csv", b'"a"b,c\n1,2\n', "the header: line 1"),
        ("a.csv", b"a,b,a\n1,2,3\n", "'a' more than once"),
        ("a.csv", b"\n\n", "no header"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        list(read_records(str(path)))
    assert name in str(error.value)


def test_what_is_no_file_to_read_is_told(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file.json").write_text("[]")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, said in (
        ("gone.json", "no such file$"),
        ("~/*.json", "no such file: patterns are not followed, name the files"),
        ("file.json/more.json", "no such file"),
        ("folder.parquet", "is a folder; name the files in it"),
        ("pipe.jsonl", "is a pipe or a device"),
        ("loop.json", "cannot be read: Too many levels"),
        ("x" * 300 + ".json", "cannot be read: File name too long"),
        ("nul\0.json", "cannot be read: .*embedded null"),
    ):
        for read in (lambda path: list(read_records(path)), content_hash):
            with pytest.raises(ValueError, match=said):
                read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("owner/name", "no such file .a hub id is written hub:owner/name"),
        (
            "https://host/a.jsonl",
            "no such file: download it first .a data set of the hub is written hub:<owner>/<name>",
        ),
        ("~/a.jsonl", "no such file: ~ is not read as your home folder here, write the whole path"),
        ("data[0-9].jsonl", "no such file: patterns are not followed, name the files"),
    ],
)
def test_a_path_of_another_kind_is_told_with_what_to_write(path, said):
    for read in (lambda path: list(read_records(path)), content_hash):
        with pytest.raises(ValueError, match=said):
            read(path)


def test_the_same_bytes_read_otherwise_are_another_content(tmp_path):
    names = ["a.json", "a.jsonl", "a.csv", "a.jsonl.gz", "a.jsonl.zst", "b.JSONL"]
    for name in names:
        (tmp_path / name).write_text("[]")
    hashes = [content_hash(str(tmp_path / name)) for name in names]
    assert len(set(hashes)) == 5 and hashes[1] == hashes[5]


def test_a_packed_file_may_have_its_name_in_capitals(tmp_path):
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(LINES))
    assert list(read_records(str(tmp_path / "A.JSONL.GZ"))) == ROWS


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = path.rename(tmp_path / name)
        with pytest.raises(ValueError, match="Permission denied"):
            list(read_records(str(path)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": ', "line 2 is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 200 deep"),
        ('{"a": ' + "[" * 250 + "]" * 250 + "}", "nested more than 200 deep"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        ('{"a": 1}{"a": 2}', "Extra data"),
        ('{"a": 1}\0', "Extra data"),
        ('{"a": "x\0"}', "control character"),
        ('{"a": "x\ry"}', "control character"),
        ("\0\0\0\0", "line 2 is not JSON"),
        ("{'a': 1}", "line 2 is not JSON"),
    ],
)
def test_one_broken_line_is_one_broken_record(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n\n \t\r\n{{"a": 3}}', newline="")
    first, broken, last = read_records(str(path))
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert isinstance(broken, BrokenRecord) and said in broken.reason and len(broken.reason) < 200


def test_what_json_leaves_open_is_decided(tmp_path):
    path = tmp_path / "a.jsonl"
    nested = '{"a": ' + "[" * 150 + "]" * 150 + "}"
    path.write_text(
        '{"a": NaN, "b": Infinity}\n{"a": 1' + "0" * 5000 + ', "b": 12}\r\n' + nested + "\n" + '"\\ud83d"', newline=""
    )
    odd, huge, deep, half = read_records(str(path))
    assert odd["a"] != odd["a"] and odd["b"] == float("inf")
    assert huge == {"a": float("inf"), "b": 12} and isinstance(huge["b"], int)
    assert json.dumps(deep) == nested and half == "\ud83d"


@given(st.lists(st.lists(VALUES.map(lambda value: {"v": value}), max_size=3), max_size=4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_files_that_were_joined_with_their_byte_order_marks_give_all_records(tmp_path_factory, files, has_blank):
    lines = ["\ufeff" + "".join(f"{json.dumps(row)}\n" for row in rows) for rows in files]
    path = tmp_path_factory.mktemp("joined") / "a.jsonl"
    path.write_text(("\n" if has_blank else "").join(lines), encoding="utf-8")
    assert list(read_records(str(path))) == [row for rows in files for row in rows]


def test_lines_that_end_as_on_old_macs_are_records_each(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.replace(b"\n", b"\r"))
    assert list(read_records(str(path))) == ROWS
    path.write_bytes(LINES.replace(b"\n", b"\r") + b"{")
    *rows, broken = read_records(str(path))
    assert rows == ROWS and isinstance(broken, BrokenRecord)


FIELDS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['say "x"', "a,b", "l\r\nm", "\r", "\n", ' "', ""]
)


@given(
    st.lists(st.lists(FIELDS, min_size=2, max_size=2), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_what_a_csv_writer_wrote_is_read_as_it_was(tmp_path_factory, rows, end, quote_all):
    assume(quote_all or not re.search("[\r\n]", "".join(map("".join, rows))))  # the writer may leave them bare
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
        writer.writerows([["one", "two"], *rows])
    assert list(read_records(str(path))) == [{"one": one, "two": two} for one, two in rows]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Tokyo?,Tokyo, of course", {3: "3 fields, the header has 2; a text with a comma stands in quotes"}),
        ("alone", {3: "1 fields, the header has 2"}),
        ('"x" y,z', {3: "',' expected after"}),
        ('a,"open', {3: "',' expected after"}),  # another quote comes later: the rows between are not swallowed
        ('a,"open\nb,c', {3: "',' expected after"}),
        ("a," + "x" * 200_000, {}),
        ("\n\n\n", {}),
        ("a,\0", {}),
    ],
)
def test_a_csv_row_that_is_broken_is_one_record_and_the_rows_around_it_are_read(tmp_path, line, wrong):
    path = tmp_path / "a.csv"
    path.write_text(f'one,two\n1,2\n{line}\n3,"4, 5"\n6,7\n')
    rows = list(read_records(str(path)))
    broken = {int(row.reason.split()[1].strip(":")): row.reason for row in rows if isinstance(row, BrokenRecord)}
    assert broken.keys() == wrong.keys() and all(said in broken[number] for number, said in wrong.items())
    good = [row for row in rows if not isinstance(row, BrokenRecord)]
    assert {"one": "1", "two": "2"} in good and good[-2:] == [{"one": "3", "two": "4, 5"}, {"one": "6", "two": "7"}]


def test_parquet_values_that_python_cannot_hold_break_their_row_alone(tmp_path):
    path = tmp_path / "a.parquet"
    times = pa.array([0, 2**62, 1], pa.timestamp("ms"))
    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xff")]
    )
    pq.write_table(pa.table({"t": times, "n": [1, 2, 3]}), path)
    rows = list(read_records(str(path)))
    assert [getattr(row, "cause", None) or row["n"] for row in rows] == [1, "a value that cannot be read", 3]
    pq.write_table(pa.table({"t": text, "n": [1, 2, 3]}), path)
    assert next(getattr(row, "cause", None) or row["n"] for row in read_records(str(path))) == 1
    pq.write_table(pa.Table.from_arrays([text, times], names=["x", "x"]), path)
    with pytest.raises(ValueError, match=r"a\.parquet: the column 'x'"):
        list(read_records(str(path)))


def test_keys_that_arrow_adds_to_structures_are_not_there(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [
        {"m": [{"role": "user", "content": "q"}, {"role": "assistant", "weight": 1}], "x": None},
        {"m": None, "x": {"y": [1]}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_records(str(path))) == [rows[0], {"m": None, "x": {"y": [1]}}]


def test_a_record_without_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "MAX_RECORD", 1000)
    monkeypatch.setattr(columns, "MAX_RECORD", 1000)
    monkeypatch.setattr(stream, "MAX_RECORD", 1000)
    monkeypatch.setattr(stream, "_BLOCK", 100)
    for name, content, said in (
        ("a.jsonl", '{}\n"' + "x" * 5000, "line 2 is longer than 1,000"),
        ("a.json", '[{},\n"' + "x" * 5000, "line 2, column 1: an element of the list is longer"),
        ("a.csv", 'a\n"' + "x\n" * 5000, "line 2: a quote is opened and never closed"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=said):
            list(read_records(str(tmp_path / name)))


def test_a_record_of_just_the_most_characters_is_read(tmp_path, monkeypatch, request):
    request.addfinalizer(partial(csv.field_size_limit, csv.field_size_limit()))  # the csv module has one for all
    monkeypatch.setattr(columns, "MAX_RECORD", 12)
    path = tmp_path / "a.csv"
    for name in ("aaaaaaaaaaa", '"aaa\naaa"\na'):  # 12 with the line break; a field of 9 and its row of 12
        path.write_text(f'a\n"b\nb"\n{name}\n')
        rows = list(csv.DictReader(path.open(newline="")))
        assert list(read_records(str(path))) == rows and len(rows) > 1
    for text in ("a\n" + "a" * 12 + "\n", "aaaaaaaaaaaa\n", 'a\n"aaaaaaa\naa"\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="a quote is opened and never closed"):
            list(read_records(str(path)))


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


def test_reading_parquet_holds_a_row_group_at_most(tmp_path):
    path, num_groups, size = tmp_path / "a.parquet", 32, 1 << 18
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as writer:
        for _ in range(num_groups):
            writer.write_table(pa.table({"text": [random.randbytes(size // 2).hex()]}))
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_records(str(path)):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < num_groups * size / 4


def test_the_header_of_a_table_that_was_joined_to_another_is_no_record(tmp_path):
    file = tmp_path / "joined.csv"
    file.write_text("question,answer\nq,a\nquestion,answer\nr,b\n")
    first, again, last = read_records(str(file))
    assert [first["answer"], last["answer"]] == ["a", "b"]
    assert (again.cause, again.reason[:26]) == ("the header of the table again", "line 3 is the header again")
