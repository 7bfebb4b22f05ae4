"""Tags: the rules measured on labelled real data, a language model's answers read whatever their form, nothing lost."""

import json
import re
import time

import pytest
from chat_stub import SECRET, Stub
from fitting import write_config, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.analysis.tags.llm_tagger import PROMPT, LLMTagger, LocalChats, ServerChats, read_tags
from sftlab.analysis.tags.rules import FEATURES, OTHER, Found, RuleTagger, find_tags
from sftlab.analysis.tags.tagging import TagReport, reason_to_drop, tag_conversations, tag_pattern, write_tags
from sftlab.cli import parse_objects
from sftlab.commands.tag import main
from sftlab.data.conversation import Conversation, Turn
from sftlab.data.droplist import read_drops
from sftlab.data.records import read_records
from sftlab.endpoint.client import ChatClient
from sftlab.endpoint.replies import ReplyCache
from sftlab.lab.abilities import lab_problems
from sftlab.report.exhibit import Exhibit


def share(queries, tag):
    return sum(any(found.tag == tag for found in find_tags(query)) for query in queries) / len(queries)


def test_the_rules_find_math_and_code_where_people_say_it_is(shared_data):
    # Development saw GSM8K's train file and half of Code Alpaca; its test file and HumanEval were not looked at.
    gsm8k = [row["question"] for row in read_records(str(shared_data / "gsm8k/test_first600.jsonl"))]
    alpaca = list(read_records(str(shared_data / "code_alpaca/code_alpaca_2k.json")))
    code = [f"{row['instruction']}\nInput:\n{row['input']}" if row["input"] else row["instruction"] for row in alpaca]
    chats = read_records(str(shared_data / "sharegpt/dummy_conversation.json"))
    talk = [turn["value"] for row in chats for turn in row["conversations"] if turn["from"] == "human"]
    assert share(gsm8k, "math") > 0.97 and share(gsm8k, "code") < 0.01
    assert share(code, "code") > 0.9 and share(code, "math") < 0.05
    assert share(talk, "code") == share(talk, "math") == 0


def test_the_rules_leave_what_is_neither_alone(shared_data):
    rows = list(read_records(str(shared_data / "mt_bench/question.jsonl")))
    opening = {c: [r["turns"][0] for r in rows if r["category"] == c] for c in {r["category"] for r in rows}}
    assert share(opening["coding"], "code") == share(opening["math"], "math") == 1
    for category in ("writing", "humanities", "stem", "roleplay", "reasoning"):
        assert share(opening[category], "code") == 0
    assert share(opening["writing"] + opening["humanities"] + opening["stem"], "math") == 0


def test_the_rules_find_the_labs_own_kinds_exactly():
    problems = lab_problems("general", 800)
    tags = [{found.tag for query in problem.prompts for found in find_tags(query)} for problem in problems]
    for tag, kind in (("math", "arithmetic"), ("code", "python")):
        assert {i for i, found in enumerate(tags) if tag in found} == {
            i for i, problem in enumerate(problems) if problem.kind == kind
        }


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_gets_a_tag_with_a_reason(query):
    found = find_tags(query)
    assert found and all(one.explanation for one in found)
    assert len({one.tag for one in found}) == len(found) and {one.tag for one in found} <= {*FEATURES, OTHER}


HOSTILE = ["\n", " \n", "; ", "(' ", '["', "a.", "1, ", "write a ", "select ", "= ", "<", "def "]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_rules_do_not_grow_with_the_square_of_hostile_text(text):
    def work(num_characters):
        began = time.process_time()
        find_tags(text * (num_characters // len(text)))
        return time.process_time() - began

    short = min(work(10_000) for _ in range(3))
    assert work(80_000) < 24 * short, "8 times the text costs about 8 times as much; with a quadratic pattern up to 64"


def test_an_explanation_adds_up():
    (found,) = [one for one in find_tags("Write a function in Python that sorts.") if one.tag == "code"]
    weights = re.findall(r"([+-][\d.]+)(?:;|$)", found.explanation)
    assert sum(map(float, weights)) >= 1 and "Python" in found.explanation


# A language model's answers

TAGS = st.lists(
    st.builds(Found, st.from_regex(r"[a-z]{1,8}( [a-z]{1,8})?", fullmatch=True), st.text(max_size=30)), min_size=1,
    max_size=4,
)  # fmt: skip


@given(TAGS, st.sampled_from(["{}", "```json\n{}\n```", "```\n{}", "Here are the tags:\n{}\nI hope this helps."]))
@settings(max_examples=150, deadline=None)
def test_json_is_read_alone_fenced_and_amid_prose(found, form):
    rows = [one._asdict() for one in found]
    assert read_tags(form.replace("{}", json.dumps(rows))) == found
    assert read_tags(form.replace("{}", json.dumps(rows[0]))) == found[:1]
    assert read_tags(form.replace("{}", json.dumps({"tags": rows}))) == found


@given(TAGS, st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_an_answer_that_was_cut_keeps_its_whole_tags(found, cut):
    text = json.dumps([one._asdict() for one in found])[:-cut]
    read = read_tags(text) or []
    assert [one.tag for one in read] == [one.tag for one in found][: len(read)] and len(read) >= len(found) - 1


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('[{"tag": "Data  Analysis", "explanation": "x"}]', ["data analysis"]),
        ('["code", "math"]', ["code", "math"]),
        ("[]", []),
        ('{"tag": "a", "explanation": "quote " inside"} {"tag": "b"', ["a", "b"]),
        ('{"tag": "a", "explanation": "x"}\n{"tag": "b", "explanation": "y"}', ["a", "b"]),
        ('As asked [JSON]: [{"tag": "a", "explanation": "x"}]', ["a"]),
        ("[{'tag': 'a'}]", None),
        ("I cannot do that.", None),
        ("", None),
        ('{"tag": 3}', None),
        ("[" * 100_000, None),
    ],
)
def test_other_forms_are_rescued_or_unread(text, tags):
    read = read_tags(text)
    assert (read if read is None else [one.tag for one in read]) == tags


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr("sftlab.endpoint.client.FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    stub = Stub()
    stub.text = '[{"tag": "Coding", "explanation": "a program"}]'
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def talks(*openings):
    turns = [(Turn("user", opening), Turn("assistant", "fine")) for opening in openings]
    return [(talk.uid, talk) for talk in (Conversation(one, "g") for one in turns)]


def test_a_server_is_asked_once_for_each_query_and_never_again(stub, tmp_path):
    def tagger():
        return LLMTagger(ServerChats(ChatClient(stub.url, "m", cache=tmp_path / "replies.jsonl")), "m")

    data = talks("one", "two", "one")
    first = list(tag_conversations(data, tagger()))
    assert [one.tags for one in first] == [["coding"]] * 3 and stub.paid == 2
    assert list(tag_conversations(data, tagger())) == first and stub.paid == 2
    assert {body["messages"][0]["content"] for body in stub.requests} == {
        PROMPT.replace("{query}", query) for query in ("one", "two")
    }
    assert SECRET not in (tmp_path / "replies.jsonl").read_text()


def test_answers_that_cannot_be_read_or_had_drop_nothing_and_are_counted(stub, tmp_path):
    stub.script = lambda i: ("no_rating", "flagged", "good")[i]
    client = ChatClient(stub.url, "m", num_parallel=1)
    tagger = LLMTagger(ServerChats(client), "m")
    report = TagReport("general", tagger.name, "all", tag_pattern("cod"))
    write_tags(tmp_path / "tags.jsonl", tag_conversations(talks("a", "b", "c" * 9000), tagger), report)
    assert (report.num_conversations, report.num_unread, report.num_dropped) == (3, 2, 1)
    said = " ".join([*report.summary(), *tagger.notes()])
    for words in ("2 turns have no readable tags", "1 answers could not be read", "1 queries got no answer",
                  "1 queries were longer than 8,192 characters"):  # fmt: skip
        assert words in said
    assert [row["num_unread"] for row in read_records(str(tmp_path / "tags.jsonl"))] == [1, 1, 0]


def test_a_dead_server_is_one_message(stub):
    stub.script = lambda i: "denied"
    with pytest.raises(ValueError, match="no answer at all: 401") as error:
        list(tag_conversations(talks("a", "b"), LLMTagger(ServerChats(ChatClient(stub.url, "m")), "m")))
    assert SECRET not in str(error.value)


class Echo:
    """Stands for a local model; counts what it is asked."""

    def __init__(self, model):
        self.model, self.encoder, self.asked = model.model, model.encoder, 0

    def answer(self, problems, sampling):
        from sftlab.tasks.task import Answer

        for problem in problems:
            self.asked += 1
            yield [Answer(problem.uid, 0, ('[{"tag": "echo"}]',), (True,))]


def test_a_local_model_answers_through_its_template_and_its_replies_are_kept(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from sftlab.data.encoder import Encoder
    from sftlab.data.template import get_template
    from sftlab.evaluate.local import LocalModel
    from sftlab.lab.tokenizer import lab_tokenizer

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=1024, max_position_embeddings=900, eos_token_id=2, **size)
    encoder = Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer()))
    torch.manual_seed(0)
    local = LocalModel(AutoModelForCausalLM.from_config(config), encoder)
    chats = LocalChats(local, ReplyCache(tmp_path / "r.jsonl"), "tiny")
    tagger = LLMTagger(chats, "tiny")
    assert tagger.tag(["coins " * 400]) == [None]  # untrained weights say nothing that can be read
    assert "cut" in tagger.notes()[0] and "260 tokens" in tagger.notes()[0]
    echo = Echo(local)
    for _ in range(2):
        again = LLMTagger(LocalChats(echo, ReplyCache(tmp_path / "e.jsonl"), "echo"), "echo")
        assert again.tag(["a", "b"]) == [[Found("echo", "")]] * 2
    assert echo.asked == 2


# The filter and the command


def test_the_pattern_matches_anywhere_in_a_tag_whatever_its_case():
    pattern = tag_pattern("code|math")
    assert reason_to_drop(["Source Code", "mathematics"], pattern) == "tag: code, math"
    assert reason_to_drop(["writing"], pattern) == reason_to_drop([], pattern) == ""
    for wrong, said in (("(", "not a regular expression"), ("code|", "matches every tag")):
        with pytest.raises(ValueError, match=said):
            tag_pattern(wrong)


def test_only_the_first_turn_or_every_one_is_tagged():
    asked = ("Hello!", "Write a Python function")
    talk = Conversation(tuple(turn for text in asked for turn in (Turn("user", text), Turn("assistant", "a"))), "g")
    by_turns = {t: next(iter(tag_conversations([(talk.uid, talk)], RuleTagger(), t))).tags for t in ("all", "first")}
    assert by_turns == {"all": ["chitchat", "code"], "first": ["chitchat"]}


def test_the_command_writes_tags_a_report_and_a_list_that_drops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path)
    records = json.loads((tmp_path / "general.json").read_text())
    for record in records[:3]:
        record["conversations"][0]["value"] = "Write a Python function that adds."
    (tmp_path / "general.json").write_text(json.dumps(records))
    config = str(write_config(tmp_path))
    assert main(["--config", config, "--ability", "general", "--to", "tags", "--drop"]) == 0
    out = capsys.readouterr().out
    assert "50 conversations of general" in out and "3 dropped (6.0%)" in out
    rows = list(read_records("tags/tags.jsonl"))
    assert len(rows) == 50 and all(row["tagger"] == "rules@1" and row["tags"] for row in rows)
    drops = read_drops("tags/drop.jsonl")
    assert {(drop.reason, drop.ability) for drop in drops} == {("tag: code", "general")} and len(drops) == 3
    assert "## kept: samples" in (tmp_path / "tags/report.md").read_text()
    exhibit = Exhibit.read(tmp_path / "tags/tags.exhibit.json")
    assert "3 dropped (6.0%)" in exhibit.findings[1]
    tags, dropped, samples = exhibit.parts
    assert ["code", "3", "6.0%", "dropped"] in tags.rows and dropped.rows == [["tag: code", "3"]]
    assert {row[0] for row in samples.rows} == {"kept", "dropped, tag: code"}
    left = parse_objects(["--config", config, "--data.abilities.general.drop", "tags/drop.jsonl"]).data
    assert len(list(left.abilities["general"].conversations())) == 47


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"--ability": "generl"}, "name one of code, general, math"),
        ({"--turns": "last"}, "invalid choice: 'last'"),
        ({"--to": ""}, "--to: expected one argument"),
        ({"--tagger": "http://localhost:1/v1"}, "--tagger_model"),
        ({"--tagger": "no/such/model"}, "no tokenizer could be loaded from"),
        ({"--prompt": "nowhere.txt"}, "there is no file nowhere.txt"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, monkeypatch, options, said):
    write_records(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = {"--config": str(write_config(tmp_path)), "--ability": "general", "--to": "x"} | options
    with pytest.raises(ValueError, match=said):
        main([word for pair in given.items() for word in pair if word])
