"""Readers: each format as published, each oddity by its rule, each rule counted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.data.conversation import Audit, BadRecord, Place, Turn, mended
from sftlab.data.readers import (
    AlpacaReader,
    GSM8KReader,
    MathReader,
    MessagesReader,
    RFTReader,
    ShareGPTReader,
    read_conversations,
)
from sftlab.data.source import FileSource


def share(*turns, **more):
    return {"conversations": [{"from": f, "value": v} for f, v in turns], **more}


def texts(conversation):
    return [(turn.role, turn.text) for turn in conversation.turns]


@pytest.mark.parametrize(
    ("reader", "record", "question", "answer"),
    [
        (GSM8KReader(), {"question": "2+2?", "answer": "#### 4"}, "2+2?", "#### 4"),
        (RFTReader(), {"query": "2+2?", "response": "#### 4"}, "2+2?", "#### 4"),
        (MathReader(), {"question": "2+2?", "answer": "#### 4"}, "2+2?", "#### 4"),
        (MathReader(), {"query": "2+2?", "response": "#### 4"}, "2+2?", "#### 4"),
        (MathReader(), {"question": None, "answer": None, "query": "q", "response": "1"}, "q", "1"),  # of one table
        (MathReader(), {"question": "q", "answer": "1", "query": None, "response": None}, "q", "1"),
        (AlpacaReader(), {"instruction": "Do", "input": "", "output": "x", "id": 1}, "Do", "x"),
        (AlpacaReader(), {"instruction": "Do", "input": "5, 7", "output": "x"}, "Do\nInput:\n5, 7", "x"),
        (AlpacaReader(), {"instruction": "Do", "output": "x"}, "Do", "x"),
    ],
)
def test_pairs(reader, record, question, answer):
    conversation, rules = reader.read(record)
    assert texts(conversation) == [("user", question), ("assistant", answer)] and not rules


def test_the_responses_to_one_question_are_one_group():
    groups = {RFTReader().read({"query": "same", "response": str(i)})[0].group for i in range(3)}
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("record", "wanted", "rule"),
    [
        (share(("human", "a"), ("gpt", "b")), [("user", "a"), ("assistant", "b")], None),
        (share(("gpt", "x"), ("human", "a"), ("gpt", "b")), [("user", "a"), ("assistant", "b")], "leading assistant"),
        (share(("human", "a"), ("gpt", "b"), ("human", "c")), [("user", "a"), ("assistant", "b")], "trailing user"),
        (share(("human", "a"), ("human", "b"), ("gpt", "c")), [("user", "a\n\nb"), ("assistant", "c")], "joined"),
        (share(("human", "a"), ("gpt", ""), ("gpt", "c")), [("user", "a"), ("assistant", "c")], "empty turn"),
        (share(("system", "s"), ("user", "a"), ("chatgpt", "b")),
         [("system", "s"), ("user", "a"), ("assistant", "b")], None),
        (share(("human", "a\r\nb"), ("bing", "c")), [("user", "a\nb"), ("assistant", "c")], "carriage returns"),
        (share(("human", "a"), ("bard", "b"), ("tool", "t"), ("gpt", "c")),
         [("user", "a"), ("assistant", "b"), ("tool", "t"), ("assistant", "c")], None),
    ],
)  # fmt: skip
def test_sharegpt_oddities_go_by_their_rule(record, wanted, rule):
    conversation, rules = ShareGPTReader().read(record)
    assert texts(conversation) == wanted
    assert any(rule in used for used in rules) if rule else not rules


def test_pieces_of_one_sharegpt_conversation_are_one_group():
    ids = ["QWJhYvA_0", "QWJhYvA_12", "other_0"]
    groups = [ShareGPTReader().read(share(("human", "a"), ("gpt", "b"), id=name))[0].group for name in ids]
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize(
    ("reader", "record", "cause"),
    [
        (ShareGPTReader(), share(("alien", "a"), ("gpt", "b")), "unknown role"),
        (ShareGPTReader(), share((["human"], "a"), ("gpt", "b")), "unknown role"),
        (ShareGPTReader(), share(("human", "a")), "no assistant turn"),
        (ShareGPTReader(), {"conversations": []}, "no turns"),
        (
            ShareGPTReader(),
            {"conversations": {"from": ["human"], "value": ["q"]}},
            "'conversations' is not a list of turns",
        ),
        (ShareGPTReader(), {"id": "x"}, "'conversations' missing"),
        (ShareGPTReader(), {"conversations": ["a"]}, "not a dictionary"),
        (ShareGPTReader(), share(("human", 5), ("gpt", "b")), "not a text"),
        (ShareGPTReader(), ["a"], "not a dictionary: list; a file that is one list of records is named .json"),
        (GSM8KReader(), {"question": "a"}, "'answer' missing"),
        (AlpacaReader(), {"instruction": "a", "output": "  "}, "empty answer"),
        (AlpacaReader(), {"instruction": 1, "output": "b"}, "not a text"),
    ],
)
def test_what_no_rule_mends_is_a_bad_record(reader, record, cause):
    with pytest.raises(BadRecord, match=cause):
        reader.read(record)


def test_openai_messages_may_have_text_parts_and_developer_turns():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": parts},
                           {"role": "assistant", "content": "c"}]}  # fmt: skip
    assert texts(MessagesReader().read(record)[0]) == [("system", "s"), ("user", "ab"), ("assistant", "c")]
    parts.append({"type": "image_url"})
    with pytest.raises(BadRecord, match="not text"):
        MessagesReader().read(record)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text("ab \r\n", max_size=3))))
def test_mended_turns_end_with_an_answer_and_lose_no_answer_in_silence(raw):
    try:
        turns, rules = mended([Turn(*turn) for turn in raw])
    except BadRecord:
        return
    assert turns[-1].role == "assistant"
    assert all(turn.text.strip() for turn in turns)
    kept = "".join(turn.text for turn in turns if turn.role == "assistant").replace("\n", "").replace(" ", "")
    given_ = "".join(text for role, text in raw if role == "assistant")
    given_ = given_.replace("\r", "").replace("\n", "").replace(" ", "")
    assert kept == given_ or any("leading assistant" in rule for rule in rules)


def write(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


GOOD = {"question": "a", "answer": "b"}


def test_bad_records_are_skipped_counted_and_numbered(tmp_path):
    path, audit = write(tmp_path, [GOOD, {"question": "a"}, "{", [1], *[GOOD] * 96]), Audit()
    found = list(read_conversations([path], GSM8KReader(), audit))
    assert len(found) == 97 and found[1][0] == Place(0, 5)
    assert sum(count for cause, count in audit.counts.items() if cause.startswith("dropped")) == 3
    assert audit.first["dropped: not valid JSON"] == [Place(0, 3)]


@pytest.mark.parametrize("paths", [[], [""], ["a.jsonl", " "]])
def test_a_source_without_a_file_is_told(paths):
    with pytest.raises(ValueError, match="names no file"):
        FileSource(paths, GSM8KReader())


def test_too_many_bad_records_or_any_when_told_end_in_a_message(tmp_path):
    path = write(tmp_path, [GOOD, {"question": "a"}])
    with pytest.raises(ValueError, match=r"1 of 2 records are bad.*record 2.*GSM8KReader"):
        list(read_conversations([path], GSM8KReader(), Audit()))
    with pytest.raises(ValueError, match=r"record 2 of .*on_bad_record: skip"):
        list(read_conversations([path], GSM8KReader(), Audit(), on_bad_record="fail"))
    with pytest.raises(ValueError, match="no records"):
        list(read_conversations([write(tmp_path, [])], GSM8KReader(), Audit()))
