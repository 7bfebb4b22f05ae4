"""What records say beside their texts: followed, counted, or the record is bad; never passed over unsaid."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data.conversation import Audit, BadRecord, Conversation, Place, Turn, mended
from sftlab.data.keys import HARMLESS
from sftlab.data.readers import (
    AlpacaReader,
    GSM8KReader,
    MathReader,
    MessagesReader,
    PairReader,
    Reader,
    ShareGPTReader,
    read_conversations,
)

ASK = {"role": "user", "content": "q"}


def answered(answer, asked=ASK, **record):
    return {"messages": [asked, {"role": "assistant", "content": "a", **answer}], **record}


def turns_of(record, reader=None):
    talk, rules = (reader or MessagesReader()).read(record)
    return list(talk.turns), talk.tools, rules


FLAGS = ["weight", "loss", "loss_mask", "loss_weight", "loss_scale", "train", "trained", "training", "trainable"]
NO = [0, 0.0, False, "0", "false", "False", "no", "off"]
YES = [1, 1.0, True, "1", "true", "Yes", "on", None, ""]


@pytest.mark.parametrize("key", [*FLAGS, "masked"])
@pytest.mark.parametrize("reader", [MessagesReader(), ShareGPTReader()])
def test_flags_say_which_turns_are_trained(key, reader):
    def record(value):
        role, text = reader.role_key, reader.text_key
        return {reader.turns_key: [{role: "user", text: "q"}, {role: "assistant", text: "a", key: value}]}

    for value, said in [*((no, False) for no in NO), *((yes, True) for yes in YES if yes not in (None, ""))]:
        turns, _, rules = turns_of(record(value), reader)
        trained = said is (key != "masked")
        assert [turn.trained for turn in turns] == [None, None if trained else False] and not rules
        assert turns[1].is_trained is trained
    for value in (None, "", float("nan")):
        assert turns_of(record(value), reader)[0][1].is_trained
    for value in (0.5, 2, -1, "half", [1], {"a": 1}, float("inf")):
        with pytest.raises(BadRecord, match=rf"'{key}' of a turn is neither 0 nor 1"):
            reader.read(record(value))


def test_flags_of_a_record_hold_for_answers_that_say_nothing_themselves():
    record = {
        "messages": [
            ASK,
            {"role": "assistant", "content": "a"},
            ASK,
            {"role": "assistant", "content": "b", "train": True},
        ],
        "weight": 0,
    }
    assert [turn.is_trained for turn in turns_of(record)[0]] == [False, False, False, True]
    assert not GSM8KReader().read({"question": "q", "answer": "a", "loss": 0})[0].turns[1].is_trained
    assert AlpacaReader().read({"instruction": "q", "output": "a", "weight": "1"})[0].turns[1].is_trained
    with pytest.raises(BadRecord, match="'weight' of a record is neither 0 nor 1"):
        MessagesReader().read(answered({}, weight=0.3))
    with pytest.raises(BadRecord, match="contradict"):
        MessagesReader().read(answered({"weight": 1, "masked": True}))


def test_a_flag_that_says_what_the_role_says_changes_nothing_and_one_of_another_role_is_kept():
    plain, flagged = answered({}), answered({"weight": 1}, asked=ASK | {"weight": 0})
    assert MessagesReader().read(plain)[0].uid == MessagesReader().read(flagged)[0].uid
    assert MessagesReader().read(answered({}, asked=ASK | {"train": 1}))[0].turns[0].trained is True


def test_turns_with_other_flags_are_not_joined():
    said = [("a", None), ("b", None), ("c", False), ("d", False), ("e", True), ("f", None)]
    turns, rules = mended([Turn("user", "q"), *(Turn("assistant", text, flag) for text, flag in said)])
    assert [(turn.text, turn.is_trained) for turn in turns[1:]] == [
        ("a\n\nb", True),
        ("c\n\nd", False),
        ("e\n\nf", True),
    ]
    assert any("kept apart" in rule for rule in rules) and any("joined" in rule for rule in rules)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
BARE = {"name": "weather", "arguments": {"city": "Rome"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"x": None}}}
PLAIN_CALL = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]


@pytest.mark.parametrize(
    ("message", "calls"),
    [
        ({"content": None, "tool_calls": [CALL]}, [CALL]),
        ({"tool_calls": [BARE]}, PLAIN_CALL),
        ({"tool_calls": json.dumps([CALL])}, [CALL]),
        ({"tool_calls": [json.dumps(CALL)]}, [CALL]),
        ({"content": "", "function_call": CALL["function"]}, PLAIN_CALL),
        (
            {"tool_calls": [{"function": {"name": "now"}}]},
            [{"type": "function", "function": {"name": "now", "arguments": "{}"}}],
        ),
    ],
)
def test_tool_calls_are_read_in_every_form(message, calls):
    record = {"messages": [ASK, {"role": "assistant", **message}]}
    turns, _, rules = turns_of(record)
    assert json.loads(turns[1].calls) == calls and turns[1].text == "" and not rules


@pytest.mark.parametrize(
    "value",
    [
        5,
        {"name": ""},
        {"arguments": "{}"},
        [[]],
        "no json",
        {"name": "f", "arguments": "no json"},
        {"name": "f", "arguments": [1]},
        {"name": 5},
        {"function": 5},
        {"name": "f", "parameters": {"a": 1}},  # trained as a call without arguments otherwise
        {"function": {"name": "f", "input": {}}},
    ],
)
def test_malformed_tool_calls_are_bad_records(value):
    with pytest.raises(BadRecord, match="tool call"):
        MessagesReader().read(answered({"tool_calls": value}))
    with pytest.raises(BadRecord, match="tool call"):
        ShareGPTReader().read(
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(value)}]}
        )


def test_the_result_of_a_tool_has_the_name_of_the_call_that_it_answers():
    record = {
        "tools": [TOOL],
        "messages": [
            ASK,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [CALL, {**CALL, "id": "c2", "function": {"name": "time"}}],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "9:00"},
            {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
            {"role": "function", "name": "other", "content": "x"},
            {"role": "assistant", "content": "It is 21 C."},
        ],
    }
    turns, tools, rules = turns_of(record)
    assert [(turn.role, turn.name) for turn in turns] == [
        ("user", ""),
        ("assistant", ""),
        ("tool", "weather"),
        ("tool", "time"),
        ("tool", "other"),
        ("assistant", ""),
    ]
    assert json.loads(tools) == [TOOL] and rules == ["mended: results of tools put in the order of their calls"]


@pytest.mark.parametrize("reader", [MessagesReader(), ShareGPTReader(), AlpacaReader(), GSM8KReader()])
def test_tools_and_system_of_a_record_are_read_by_every_reader(reader):
    record = {"instruction": "q", "output": "a", "question": "q", "answer": "a"}
    record |= answered({}) | {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    record = {key: value for key, value in record.items() if key in reader.keys(record)}
    for key, value in (
        ("tools", [TOOL]),
        ("functions", [TOOL["function"]]),
        ("tools", json.dumps([TOOL["function"]])),
        ("tools", [json.dumps(TOOL)]),
    ):
        _, tools, rules = turns_of(record | {key: value}, reader)
        assert json.loads(tools) == [TOOL] and not rules
    for key in ("system", "system_prompt"):
        turns, _, rules = turns_of(record | {key: "In French."}, reader)
        assert turns[0] == Turn("system", "In French.") and len(turns) == 3 and not rules
    assert turns_of(record | {"tools": [], "system": "", "images": None}, reader) == turns_of(record, reader)
    for key, value in (
        ("tools", 5),
        ("tools", "no json"),
        ("tools", [5]),
        ("tools", [{"x": 1}]),
        ("tools", {"name": "x"}),
        ("system", 5),
        ("system", ["x"]),
    ):
        with pytest.raises(BadRecord, match=key):
            reader.read(record | {key: value})


def test_a_system_text_that_is_there_twice_is_there_once_and_two_are_joined():
    own = {"role": "system", "content": "s"}
    record = {"messages": [own, *answered({})["messages"]], "system": "s"}
    assert [turn.text for turn in turns_of(record)[0]] == ["s", "q", "a"]
    turns, _, rules = turns_of(record | {"system": "t"})
    assert turns[0].text == "t\n\ns" and any("joined" in rule for rule in rules)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_apart_from_the_text(key):
    assert turns_of(answered({key: "hm"}))[0][1] == Turn("assistant", "a", reasoning="hm")
    assert turns_of(answered({key: "hm", "content": None}))[0][1] == Turn("assistant", "", reasoning="hm")
    assert GSM8KReader().read({"question": "q", "answer": "a", key: "hm"})[0].turns[1].reasoning == "hm"
    part = {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a", "image_url": None}]}
    assert turns_of(answered(part))[0][1] == Turn("assistant", "a", reasoning="hm")
    for wrong in (
        answered({key: 5}),
        answered({}, asked=ASK | {key: "hm"}),
        answered(part | {key: "other"}),
        answered({key: "hm", "thinking" if key != "thinking" else "reasoning": "ha"}),
        answered({}, **{key: "hm"}),
    ):
        with pytest.raises(BadRecord, match=rf"{key}|thoughts"):
            MessagesReader().read(wrong)


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], '[["Hi", "Hello"]]', [("Hi", "Hello")]])
@pytest.mark.parametrize(
    ("reader", "record"),
    [
        (AlpacaReader(), {"instruction": "Square.", "input": "7", "output": "49"}),
        (PairReader("x", "y"), {"x": "q", "y": "a"}),
    ],
)
def test_a_history_comes_before_the_exchange(reader, record, history):
    turns, _, rules = turns_of(record | {"history": history}, reader)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2 and not rules
    assert [turn.text for turn in turns[:2]] == ["Hi", "Hello"]
    assert reader.read(record | {"history": []})[0] == reader.read(record)[0]
    for wrong in ([["Hi"]], [["Hi", None]], ["Hi", "Hello"], {"a": 1}, "no json", 5, [["a", "b", "c"]]):
        with pytest.raises(BadRecord, match="'history' is not a list of pairs"):
            reader.read(record | {"history": wrong})


def test_an_input_of_one_character_is_no_less_an_input():
    record = {"instruction": "Square.", "input": "7", "output": "49"}
    assert AlpacaReader().read(record)[0].turns[0].text == "Square.\nInput:\n7"
    for nothing in ("", " \n", None, float("nan")):
        assert AlpacaReader().read(record | {"input": nothing})[0].turns[0].text == "Square."
    assert AlpacaReader().read(record | {"instruction": " ", "input": "7 squared?"})[0].turns[0].text == "7 squared?"


@pytest.mark.parametrize("reader", [MessagesReader(), ShareGPTReader(), AlpacaReader(), GSM8KReader(), MathReader()])
def test_other_keys_of_a_record_are_counted_harmless_or_make_it_bad(reader):
    good = {"instruction": "q", "output": "a", "question": "q", "answer": "a"}
    good |= answered({}) | {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    good = {key: value for key, value in good.items() if key in reader.keys(good)}
    assert turns_of(good | dict.fromkeys(HARMLESS, "x"), reader)[2] == []
    assert turns_of(good | {"nothing": None, "empty": "", "list": [], "object": {}}, reader)[2] == []
    assert turns_of(good | {"b": 0, "a": False, "constraints": 1, "weight_class": "heavy"}, reader)[2] == [
        f"passed over: key {key!r}" for key in ("a", "b", "constraints", "weight_class")
    ]
    assert turns_of(good | {"chosen": "x", "rejected": "y"}, reader)[2] == [
        "passed over: key 'chosen'",
        "passed over: key 'rejected'",
    ]
    for key, value in (
        ("images", ["a.png"]),
        ("audio", "a.wav"),
        ("mask", "User"),
        ("tool_calls", [CALL]),
        ("function_call", BARE),
        ("train_on_inputs", False),
        ("lossMask", [0, 1]),
        ("token_weights", [1]),
        ("documents", ["x"]),
        ("label", False),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ):
        with pytest.raises(BadRecord, match=f"key '{key}'"):
            reader.read(good | {key: value})


def test_other_keys_of_a_turn_are_counted_or_make_the_record_bad():
    assert turns_of(answered({"id": 1, "note": "x", "name": "Bob", "tool_call_id": "c"}))[2] == [
        f"passed over: key {key!r} of a turn" for key in ("name", "note", "tool_call_id")
    ]
    assert turns_of(answered({"tool_calls": [{**CALL, "index": 0, "why": "x"}]}))[2] == [
        "passed over: key 'why' of a tool call"
    ]
    assert turns_of(answered({"content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]}))[2] == [
        "passed over: key 'cache_control' of a part"
    ]
    for key, value in (
        ("tools", [TOOL]),
        ("channel", "analysis"),
        ("training_detail", [{"train": 0}]),
        ("refusal", "No."),
        ("images", ["x"]),
        ("mask", 1),
        ("history", [["a", "b"]]),
        ("audio", {"id": 1}),
        ("train_on_turn", "False"),
        ("is_masked", "yes"),
        ("ignore", True),
        ("supervised", 0),
        ("learn", "off"),
        ("kto_tag", 0),
        ("kto_tag", "false"),
    ):
        with pytest.raises(BadRecord, match=f"key '{key}' of a turn"):
            MessagesReader().read(answered({key: value}))
    for part in (
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "input_audio"},
        {"text": 5},
        5,
        None,
        {"type": "tool_use", "text": "x"},
        {"type": "text", "text": "x", "image": "y"},
    ):
        with pytest.raises(BadRecord, match="not text"):
            MessagesReader().read(answered({"content": [part]}))


def test_words_about_training_that_are_no_flags_are_counted():
    assert turns_of(answered({"loss_note": "too high", "kto_tag": 1, "ignore": "", "trained_by": "Ann"}))[2] == [
        f"passed over: key {key!r} of a turn" for key in ("kto_tag", "loss_note", "trained_by")
    ]


def test_keys_from_data_cannot_flood_or_break_the_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"question": "q", "answer": "a", f"key{i}" + "x" * 500 + "\x1b[2J": 1} for i in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit = Audit()
    assert len(list(read_conversations([str(path)], GSM8KReader(), audit))) == 500
    assert (
        sum(audit.counts.values()) == 500
        and len(audit.counts) < 210
        and audit.counts["passed over: other causes"] > 250
    )
    assert all(len(cause) < 100 and cause.isprintable() for cause in audit.counts)


@pytest.mark.parametrize("as_text", [True, False])
def test_columns_hold_messages_as_structures_or_as_json(tmp_path, as_text):
    rows = [answered({"tool_calls": [CALL]}, tools=[TOOL]), answered({"weight": 0}), answered({})]
    wanted = [MessagesReader().read(row)[0] for row in rows]
    if as_text:
        rows = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found, audit = [], Audit()
    for _, talk in read_conversations([str(path)], MessagesReader(), audit):
        found.append(talk)
    if not as_text:  # a structure cannot tell a null from what is not there
        wanted[0] = wanted[0]._replace(tools=wanted[0].tools.replace('"parameters": {"x": null}', '"parameters": {}'))
    assert [talk.turns for talk in found] == [talk.turns for talk in wanted] and not audit.counts
    assert [talk.tools for talk in found[1:]] == ["", ""]


def test_a_column_of_what_python_prints_is_no_json():
    with pytest.raises(BadRecord, match="'messages' is text but not JSON"):
        MessagesReader().read({"messages": str(answered({})["messages"])})
    for value in (b"bytes", 5, {"role": ["user"], "content": ["x"]}):
        with pytest.raises(BadRecord):
            MessagesReader().read({"messages": value})


def test_halves_of_surrogate_pairs_are_replaced_and_counted_wherever_they_stand():
    half = "\ud83d"
    record = {
        "id": f"{half}_0",
        "tools": [{"name": half}],
        "conversations": [{"from": "human", "value": f"hi {half}"}, {"from": "gpt", "value": "é"}],
    }
    talk, rules = ShareGPTReader().read(record)
    assert talk.turns[0].text == "hi \ufffd" and rules == ["mended: half of a surrogate pair replaced"]
    (talk.group + talk.tools).encode()
    escaped = {"name": "f", "arguments": '{"a": "\\ud83d"}'}
    calls = turns_of(answered({"tool_calls": [escaped]}))[0][1].calls
    json.loads(json.loads(calls)[0]["function"]["arguments"])["a"].encode()
    parts = {"content": [{"type": "text", "text": half}, {"type": "text", "text": "\ude00"}]}
    assert turns_of(answered(parts))[0][1].text == "\U0001f600"


def test_what_is_left_out_at_the_ends_is_counted_by_its_role():
    roles = ["assistant", "tool", "user", "assistant", "tool", "system"]
    turns, rules = mended([Turn(role, role[0]) for role in roles])
    assert [turn.role for turn in turns] == ["user", "assistant"]
    assert set(rules) == {f"mended: leading {role} turn dropped" for role in ("assistant", "tool")} | {
        f"mended: trailing {role} turn dropped" for role in ("tool", "system")
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *FLAGS,
        "masked",
        "mask",
        "tools",
        "functions",
        "tool_calls",
        "function_call",
        "reasoning",
        "thinking",
        "system",
        "history",
        "images",
        "name",
        "tool_call_id",
        "id",
        "label",
        "x",
        "role",
        "content",
        "from",
        "value",
        "type",
        "text",
        "question",
        "answer",
        "input",
        "instruction",
        "output",
    ]
)
TOLD = JSON | st.sampled_from(
    [0, 1, "0", [TOOL], [CALL], BARE, json.dumps([CALL]), [["a", "b"]], "\ud800", "user", "gpt"]
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "system"]),
        "content": TOLD | st.just("a"),
        "from": st.sampled_from(["human", "gpt", "function_call"]),
        "value": TOLD | st.just("b"),
    },
).flatmap(lambda known: st.dictionaries(NAMES, TOLD, max_size=3).map(lambda more: more | known))
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE | TOLD, max_size=4),
        "conversations": st.lists(MESSAGE, max_size=4),
        "question": TOLD | st.just("q"),
        "answer": TOLD | st.just("a"),
        "instruction": st.just("i"),
        "output": st.just("o"),
    },
).flatmap(lambda known: st.dictionaries(NAMES, TOLD, max_size=4).map(lambda more: more | known))


@given(
    RECORD | TOLD, st.sampled_from([MessagesReader(), ShareGPTReader(), AlpacaReader(), GSM8KReader(), MathReader()])
)
@settings(max_examples=250, deadline=None)
def test_any_record_is_a_conversation_or_bad_as_what_it_is(record, reader):
    try:
        talk, rules = reader.read(record)
    except BadRecord as error:
        assert error.cause and len(error.cause) < 200 and len(str(error)) < 1000
        return
    assert talk.turns[-1].role == "assistant" and all(turn.has_content for turn in talk.turns)
    for text in (
        talk.group,
        talk.tools,
        *(text for turn in talk.turns for text in (turn.text, turn.reasoning, turn.calls)),
    ):
        text.encode()
    assert all(isinstance(json.loads(text), list) for turn in talk.turns for text in [turn.calls, talk.tools] if text)
    counted = " ".join(rules)
    for key, value in record.items():
        is_nothing = value in (None, "", [], {}) or value != value
        known = reader.keys(record) | HARMLESS | {*FLAGS, "masked", "tools", "functions", "system"}
        assert key in known or is_nothing or f"key {key!r}" in counted
    assert talk.uid == Conversation(*talk).uid


class Failing(Reader):
    def turns(self, record):
        return [Turn("user", record["q"]), Turn("assistant", record["a"])]


def test_messages_name_file_record_and_key(tmp_path):
    for name, rows in (
        ("a", [{"q": "x", "a": "y", "own": 1}] * 3),
        ("b", [{"q": "x", "a": "y"}, {"a": "y"}]),
        ("empty", []),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths, audit = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "empty")], Audit()
    with pytest.raises(ValueError, match=r"record 2 of .*b\.jsonl: Failing fails on it: KeyError: 'q'.*BadRecord"):
        list(read_conversations(paths, Failing(), Audit()))
    with pytest.raises(ValueError, match=r"record 2 of .*b\.jsonl: key 'q' missing: it has 'a'; mend it"):
        list(read_conversations(paths, PairReader("q", "a"), Audit(), on_bad_record="fail"))
    found = list(read_conversations(paths, PairReader("q", "a"), audit, max_bad_share=0.5))
    assert [place for place, _ in found] == [Place(0, 1), Place(0, 2), Place(0, 3), Place(1, 1)]
    assert audit.places(paths) == {
        "dropped: key 'q' missing": "2 of b.jsonl",
        "passed over: key 'own'": "1, 2, 3 of a.jsonl",
        "empty: a file without records": "0 of empty.jsonl",
    }
    with pytest.raises(ValueError, match=r"5 of 5 records are bad.*By cause: 4 key 'x' missing, 1 'a' is not"):
        (tmp_path / "c.jsonl").write_text('{"x": "q", "a": 5}\n' + '{"a": "y"}\n' * 4)
        list(read_conversations([str(tmp_path / "c.jsonl")], PairReader("x", "a"), Audit()))


def conversation_with_results(*ids):
    calls = [
        {"id": name, "function": {"name": "look", "arguments": {"at": name}}} for name in ("call_a", "call_b", "call_c")
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ids]
    first = {"role": "assistant", "content": None, "tool_calls": calls}
    return {"messages": [{"role": "user", "content": "q"}, first, *results, {"role": "assistant", "content": "done"}]}


@pytest.mark.parametrize("ids", [("call_c", "call_a", "call_b"), ("call_b", "call_a"), ("call_a", "call_b", "call_c")])
def test_results_of_tools_stand_in_the_order_of_their_calls(ids):
    talk, rules = MessagesReader().read(conversation_with_results(*ids))
    assert [turn.text for turn in talk.turns if turn.role == "tool"] == [f"of {name}" for name in sorted(ids)]
    assert ("mended: results of tools put in the order of their calls" in rules) == (list(ids) != sorted(ids))


@pytest.mark.parametrize("ids", [("call_b", "call_b", "call_a"), ("other", "call_b", "call_a")])
def test_results_whose_ids_do_not_tell_stay_where_they_are(ids):
    talk, rules = MessagesReader().read(conversation_with_results(*ids))
    assert [turn.text for turn in talk.turns if turn.role == "tool"] == [f"of {name}" for name in ids]
    assert not any("order" in rule for rule in rules)
