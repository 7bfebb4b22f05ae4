"""The composition card: its numbers are the data's, its page stands alone and shows text as text."""

import json
import re
from html.parser import HTMLParser

import pytest
from fitting import write_config, write_records

from sftlab.analysis.card.composition import compose
from sftlab.analysis.card.page import page
from sftlab.analysis.card.text import markdown
from sftlab.cli import parse_objects
from sftlab.commands.card import main
from sftlab.report.exhibit import Exhibit

LONG = "the river stone shone under a green cloud while the table held bread paper music and light"
TRAP = '<script>alert("x")</script> a | b'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path)

    def chat(name, asked, said):
        return {"id": name, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}

    code = json.loads((tmp_path / "code.json").read_text())
    chats = [chat("a", f"Say: {LONG}", LONG), chat("b", f"Say: {LONG}", f"{LONG} today"), chat("t", TRAP, TRAP)]
    chats += [chat("same1", "Good day, my friend!", "Good day."), chat("same2", "good day my friend", "Good day!")]
    chats.append(chat("code", code[0]["instruction"], code[0]["output"]))
    (tmp_path / "general.json").write_text(json.dumps(chats))
    return tmp_path


def composed(folder, *options):
    objects = parse_objects(["--config", str(write_config(folder)), *options])
    objects.data.load(objects.model.tokenizer)
    return objects.data, compose(objects.data, {})


def test_the_numbers_are_those_of_the_data(folder):
    data, mix = composed(folder)
    for name, card in mix.abilities.items():
        table = data.abilities[name].examples
        assert card.lengths_N.tolist() == table.lengths_N.tolist()
        assert card.supervised_N.sum() == table.supervised_N.sum()
        talks = [talk for _, talk in data.abilities[name].conversations()]
        assert card.num_conversations == len(talks) == sum(card.exchanges.values())
        assert card.words.total() == sum(len(re.findall(r"[^\W_]+", t.text)) for talk in talks for t in talk.turns)
    assert mix.covered("math", "math") == 1 and 0 < mix.covered("code", "math") <= 1


def test_duplicates_are_found_within_and_across_abilities(folder):
    _, mix = composed(folder)
    found = mix.duplicates
    assert found.same["general", "general"] == 1
    assert found.same["general", "code"] == found.same["code", "general"] == 1
    assert found.near["general", "general"] == 2 and found.near["code", "code"] == 0
    ((similarity, one, other),) = found.pairs
    assert 0.7 <= similarity < 1 and LONG in one[2] and LONG in other[2]


def test_a_drop_list_shows_and_its_conversations_are_gone(folder):
    data, _ = composed(folder)
    uid = next(uid for uid, talk in data.abilities["general"].conversations() if talk.turns[0].text == TRAP)
    (folder / "drop.jsonl").write_text(json.dumps({"uid": uid, "reason": "tag: code"}) + "\n")
    _, mix = composed(folder, "--data.abilities.general.drop", "drop.jsonl")
    assert mix.abilities["general"].num_conversations == 5 and len(mix.abilities["general"].lengths_N) == 5
    assert "dropped: tag: code" in page(mix, "t") and "- dropped: tag: code: 1" in markdown(mix, "t")
    assert "<script" not in page(mix, "t") and "script-src 'none'" in page(mix, "t")


class Checked(HTMLParser):
    """Fails on anything that would be loaded, and on tags that do not match."""

    void = frozenset(("meta", "br", "rect"))

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img", "iframe"), tag
        assert not [name for name, value in attrs if name in ("src", "href") or "url(" in (value or "")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_shows_text_as_text(folder):
    config = str(write_config(folder))
    uid = next(uid for uid, _ in parse_objects(["--config", config]).data.abilities["general"].conversations())
    (folder / "tags.jsonl").write_text(json.dumps({"uid": uid, "tags": ["writing", "<b>"]}) + "\n")
    assert main(["--config", config, "--to", "out", "--tags", "general=tags.jsonl"]) == 0
    checked = Checked()
    checked.feed((folder / "out/card.html").read_text())
    text = "".join(checked.text)
    assert not checked.open
    assert TRAP in text and "<b>" in text and "ASSISTANT:" in text
    assert "</script>" not in (folder / "out/card.md").read_text()
    exhibit = Exhibit.read(folder / "out/card.exhibit.json")
    assert exhibit.page == folder / "out/card.html"
    assert {row[0] for row in exhibit.parts[0].rows} == {"math", "code", "general", "all"}


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ("general", "write ABILITY=FILE"),
        ("poems=x.jsonl", "one of code, general, math"),
        ("general=math.jsonl", "no tags"),
    ],
)
def test_mistakes_end_in_one_message(folder, tags, said):
    with pytest.raises(ValueError, match=said):
        main(["--config", str(write_config(folder)), "--to", "out", "--tags", tags])
