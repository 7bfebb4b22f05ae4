"""The cache: a damaged entry is told and made again, a user's code is in its key, trouble is said."""

import hashlib
import importlib
import json
import os
import sys

import pytest

from sftlab import fingerprint
from sftlab.data.ability import MathData
from sftlab.data.encoder import Encoder
from sftlab.data.source import FileSource
from sftlab.data.template import get_template
from sftlab.fingerprint import code_of, described, digest
from sftlab.lab.tokenizer import lab_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "examples"


def loaded():
    data = MathData(num_examples=20)
    data.load_examples(Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer())), 256, "split")
    return data.examples


def cut(folder):
    os.truncate(folder / "examples.arrow", 100)


def flip(folder):
    content = bytearray((folder / "examples.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "examples.arrow").write_bytes(content)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


DAMAGES = [
    cut,
    flip,
    empty,
    lambda folder: (folder / "audit.json").unlink(),
    lambda folder: (folder / "examples.arrow").unlink(),
    lambda folder: (folder / "audit.json").write_text("[1]"),
    lambda folder: (folder / "audit.json").write_text('{"counts": {'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_told_in_one_line_and_made_again(damage, cache, capsys):
    first = loaded()
    damage(first.folder)
    again = loaded()
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "damaged" in said and str(again.folder) in said
    assert again.folder == first.folder and again.content_hash() == first.content_hash()
    assert loaded().uids == first.uids and not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_told_with_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cache: .*SFTLAB_CACHE"):
        loaded()


def test_a_large_table_is_hashed_in_blocks_and_every_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_BLOCK", 1 << 21)
    whole = bytearray(os.urandom((1 << 22) + 3))
    path = tmp_path / "table"
    path.write_bytes(whole)
    blocks = (whole[start : start + (1 << 21)] for start in range(0, len(whole), 1 << 21))
    parts = b"".join(hashlib.blake2b(block, digest_size=16).digest() for block in blocks)
    hashes = {fingerprint.table_hash(path)}
    assert hashes == {hashlib.blake2b(parts, digest_size=16).hexdigest()}
    for number, place in enumerate((0, (1 << 21) - 1, 1 << 21, len(whole) - 1), start=1):
        whole[place] ^= 1
        (tmp_path / str(number)).write_bytes(whole)
        hashes.add(fingerprint.table_hash(tmp_path / str(number)))
    assert len(hashes) == 5


MINE = """
from sftlab.data.readers import Reader
from sftlab.data.conversation import Turn
from {base}
class Mine(Base):
    def turns(self, record):
        return [Turn("user", clean(record["q"])), Turn("assistant", record["a"])]
"""
HELPER = (
    "from sftlab.data.readers import Reader as Base\ndef clean(text):\n    import {deep}\n    return text.{how}()\n"
)


def test_an_edit_of_what_a_users_reader_stands_on_gives_another_entry(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Hello", "a": "There"}) + "\n")
    encoder = Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer()))
    folders = []
    for how, deep in (("upper", 1), ("lower", 1), ("lower", 2)):
        (tmp_path / "mine_reader.py").write_text(MINE.format(base="mine_helper import Base, clean"))
        (tmp_path / "mine_helper.py").write_text(HELPER.format(how=how, deep="mine_deep"))
        (tmp_path / "mine_deep.py").write_text(f"NUMBER = {deep}\n")
        importlib.invalidate_caches()
        for name in ("mine_reader", "mine_helper", "mine_deep"):
            sys.modules.pop(name, None)
        reader = importlib.import_module("mine_reader").Mine()
        assert set(code_of(reader)) == {"mine_reader", "mine_helper", "mine_deep"}
        folders.append(FileSource([str(tmp_path / "rows.jsonl")], reader).examples("math", encoder, 256).folder)
    assert len(set(folders)) == 3


def test_code_typed_in_counts_with_what_it_calls():
    def made(word):
        space = {"__name__": "typed_in_a_notebook"}
        exec(
            f"def helper(x):\n    return x + {word!r}\nclass Thing:\n    def run(self, x):\n        return helper(x)",
            space,
        )
        return space["Thing"]()

    assert code_of(made("a")) == code_of(made("a")) != code_of(made("b"))


class Holder:
    def __init__(self, value):
        self.value, self.me = value, self


def test_values_are_described_alike_in_every_process_and_apart_where_they_differ():
    assert digest(Holder([1, {"a": 2.0}])) == digest(Holder((1.0, {"a": 2}))) != digest(Holder([1, {"a": 3}]))
    assert "0x" not in json.dumps(
        described([Holder(len), Holder, len, {3, 1}, b"x", test_code_typed_in_counts_with_what_it_calls])
    )
