"""The tokenizer's own chat template: what is trained follows exactly what is asked, whatever the template does."""

import json

import pytest
from chat_templates import CHATML, SPECIAL, TEMPLATES, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from sftlab.data.conversation import BadRecord, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.template import get_template

ENCODERS = {
    name: Encoder(byte_tokenizer(text), get_template("tokenizer", byte_tokenizer(text)))
    for name, text in TEMPLATES.items()
}
CALL = json.dumps(
    [{"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Rome"}'}}]
)
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])


def user(text):
    return Turn("user", text)


def says(text, **more):
    return Turn("assistant", text, **more)


def texts(encoder, turns, tools=""):
    """Each text of a conversation as (what stands before, trained, ...) strings, special tokens by name."""
    found = []
    for pieces in encoder.template.rendered(turns, tools).texts:
        one = encoder.encode([pieces])[0]
        runs, start = [], 0
        for run in one.runs:
            runs.append(encoder.tokenizer.decode(one.ids[start : start + run].tolist()))
            start += run
        found.append(runs)
    return found


def test_an_untrained_answer_is_context():
    encoder = ENCODERS["chatml"]
    turns = [user("2+2?"), says("WRONG", trained=False), user("sure?"), says("RIGHT")]
    [runs] = texts(encoder, turns)
    assert runs[1::2] == ["RIGHT<|im_end|>"] and "WRONG" in runs[0]
    trained_too = encoder.template.render([turns[0], says("WRONG"), *turns[2:]])
    flagged = encoder.template.render(turns)
    assert encoder.encode([trained_too])[0].ids == encoder.encode([flagged])[0].ids


def test_a_call_is_trained_with_its_reasoning_and_its_end_and_a_result_is_not():
    turns = [
        user("Rome?"),
        says("", calls=CALL, reasoning="ask it"),
        Turn("tool", "21 C", name="weather"),
        says("21 C."),
    ]
    [runs] = texts(ENCODERS["thinking"], turns, TOOLS)
    call = '<tool_call>\n{"name": "weather", "arguments": {"in": "Rome"}}\n</tool_call><|im_end|>'
    assert runs[1] == "<think>\nask it\n</think>\n\n" + call
    assert runs[3].endswith("21 C.<|im_end|>") and "21 C\n</tool_response>" in runs[2] and '"weather"' in runs[0]
    [runs] = texts(ENCODERS["text arguments"], [*turns[:1], says("", calls=CALL)])
    assert runs[1] == 'weather({"in": "Rome"})<|im_end|>'


def test_a_template_that_writes_no_calls_and_no_tools_says_so():
    template = ENCODERS["chatml"].template
    with pytest.raises(BadRecord, match="tool calls that the tokenizer's chat template cannot write"):
        template.rendered([user("a"), says("", calls=CALL)])
    with pytest.raises(BadRecord, match=r"^tools that"):
        template.rendered([user("a"), says("b")], TOOLS)


def test_reasoning_goes_where_the_template_has_a_place_and_is_counted_where_not():
    turns = [user("q"), says("a", reasoning="hm")]
    assert ENCODERS["thinking"].template.rendered(turns).rules == []
    inline = ENCODERS["chatml"].template.rendered(turns)
    assert inline.texts[0][6].text == "<think>\nhm\n</think>\n\na" and "written into the text" in inline.rules[0]
    plain = byte_tokenizer(CHATML, added=())
    template = get_template("tokenizer", plain)
    rendered = template.rendered(turns)
    assert rendered.rules == ["left out: reasoning that the tokenizer's chat template cannot write"]
    assert rendered.texts[0] == template.render([user("q"), says("a")])
    with pytest.raises(BadRecord, match="reasoning alone"):
        template.rendered([user("q"), says("", reasoning="hm")])


def test_generation_stops_at_every_end_that_was_trained():
    ends = {name: set(encoder.template.ends) for name, encoder in ENCODERS.items()}
    assert ends["two ends"] == {"<|im_end|>", "</s>"}
    assert ends["closing"] == ends["chatml"] == ends["silent"] == {"<|im_end|>"}
    assert ends["strict"] == {"</s>"}
    assert ends["channels"] == {"<|return|>", "<|call|>"}  # <|im_end|> stands inside of answers
    for encoder in ENCODERS.values():
        stops = encoder.tokenizer.convert_ids_to_tokens(encoder.stop_ids)
        assert set(encoder.template.ends) | {"</s>"} == set(stops)


def test_a_template_that_rewrites_answers_gives_one_text_for_each():
    turns = [user("q1"), says("a1", reasoning="r1"), user("q2"), says("a2", reasoning="r2")]
    first, second = texts(ENCODERS["thinking"], turns)
    assert first[1] == "<think>\nr1\n</think>\n\na1<|im_end|>" and second[1] == "<think>\nr2\n</think>\n\na2<|im_end|>"
    assert "r1" not in second[0] and "a1" in second[0] and len(second[1::2]) == 1
    assert "split: the template rewrites earlier answers" in ENCODERS["thinking"].template.rendered(turns).rules
    assert [run[1] for run in texts(ENCODERS["channels"], turns)] == [
        " thinks<|msg|>r1<|im_end|><|im_start|>assistant says<|msg|>a1<|return|>",
        " thinks<|msg|>r2<|im_end|><|im_start|>assistant says<|msg|>a2<|return|>",
    ]


def test_an_exported_template_asks_as_training_did_where_the_tokenizers_own_does_not():
    encoder = ENCODERS["silent"]
    tokenizer = byte_tokenizer(str(encoder.template.chat_template()))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.tokenizer.decode(encoder.prompt_ids([user("q")])) == asked


WORDS = st.text("ab<|>/_imstarend\n \ue000\ue001", max_size=8)
SAID = st.one_of(
    WORDS, st.sampled_from(["<|im_end|>", "</s>", "x<|im_start|>assistant\n", "[/INST] ", "\ue000", "é ü"])
)
FULL = SAID.filter(lambda text: text.strip())


@st.composite
def conversations(draw):
    turns = [Turn("system", draw(FULL))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(user(draw(FULL)))
        if draw(st.integers(0, 3)) == 0:
            turns += [says(draw(SAID), calls=CALL, reasoning=draw(SAID)), Turn("tool", draw(FULL), name="weather")]
        trained = draw(st.sampled_from([None, None, True, False]))
        turns.append(says(draw(FULL), trained=trained, reasoning=draw(st.sampled_from(["", "", "because"]))))
    return turns, draw(st.sampled_from(["", "", TOOLS]))


@given(conversations(), st.sampled_from(sorted(TEMPLATES)))
@settings(max_examples=500, deadline=None)
def test_every_trained_answer_is_trained_once_after_exactly_what_asks_for_it(conversation, name):
    (turns, tools), encoder = conversation, ENCODERS[name]
    trained = [number for number, turn in enumerate(turns) if turn.is_trained]
    if not trained:
        return
    try:
        rendered = encoder.template.rendered(turns[: trained[-1] + 1], tools)
    except BadRecord as error:
        assert any(word in str(error) for word in ("cannot write", "refuses", "drops, moves or changes", "looks into"))
        return
    prompts = [encoder.prompt_ids(turns[:number], tools) for number in trained]
    assert prompts == sorted(prompts, key=len)
    found = []
    for one in encoder.encode(rendered.texts):
        position = 0
        for number, run in enumerate(one.runs):
            if number % 2:
                found.append((one.ids[:position].tolist(), one.ids[position : position + run].tolist()))
            position += run
    found.sort(key=lambda pair: len(pair[0]))  # a text may train the answers of a later exchange, and a call before
    assert [before for before, _ in found] == prompts
    for number, (_, answer) in zip(trained, found, strict=True):
        assert answer[-1] in encoder.stop_ids and not set(answer[:-1]) & set(encoder.stop_ids)
        said = encoder.tokenizer.decode(answer[:-1])
        assert turns[number].text.strip() in said
        if turns[number].calls:
            assert "weather" in said and "Rome" in said
        if turns[number].reasoning and not any("left out" in rule for rule in rendered.rules):
            assert turns[number].reasoning.strip() in said


@given(conversations(), st.sampled_from(sorted(TEMPLATES)))
@settings(max_examples=200, deadline=None)
def test_special_tokens_come_from_the_template_alone(conversation, name):
    (turns, tools), encoder = conversation, ENCODERS[name]
    plain = [turn._replace(text="x", reasoning=turn.reasoning and "y") for turn in turns]
    special = set(encoder.tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|msg|>"]))
    try:
        pairs = [encoder.encode(encoder.template.rendered(said, tools).texts) for said in (turns, plain)]
    except BadRecord:
        return
    counts = [[sum(i in special for i in one.ids) for one in some] for some in pairs]
    assert counts[0] == counts[1]


def stripping_tokenizer(chat_template, names, **sides):
    """The byte tokenizer, some of whose special tokens take the white space beside them."""
    plain = byte_tokenizer(chat_template)
    whole = json.loads(plain.backend_tokenizer.to_str())
    for token in whole["added_tokens"]:
        token |= sides if token["content"] in names else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)), bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = chat_template
    return made


@pytest.mark.parametrize("sides", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
@pytest.mark.parametrize("name", ["chatml", "closing", "thinking", "channels", "strict"])
def test_special_tokens_that_take_white_space_take_it_in_training_as_where_an_answer_is_asked_for(name, sides):
    tokenizer = stripping_tokenizer(TEMPLATES[name], SPECIAL, **sides)
    assert any(isinstance(t, AddedToken) and (t.lstrip or t.rstrip) for t in tokenizer.added_tokens_decoder.values())
    encoder = Encoder(tokenizer, get_template("tokenizer", tokenizer))
    turns = [user("one x"), says("two"), user(" three\n"), says("four five")]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]

    def by_the_tokenizer(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)

    assert encoder.prompt_ids(turns[:-1]) == by_the_tokenizer(messages[:-1], add_generation_prompt=True)
    whole = encoder.encode(encoder.template.rendered(turns).texts)[-1]
    assert whole.ids.tolist() == by_the_tokenizer(messages)
    if name == "chatml" and "rstrip" in sides:  # what a model says stays as it is
        [runs] = texts(encoder, [user("q"), says("  a \n")])
        assert runs[1].startswith("  a \n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nplan\n</think>\n\nanswer", ""),
        ("Close it by </think> then.", "changed by the template"),
        ("cut = s.split('</think>')[-1]", "changed by the template"),
        ("<think>a</think> b </think> c", "drops, moves or changes contents"),
        ("x <think>y</think> z", "drops, moves or changes contents"),
    ],
)
def test_a_template_that_cuts_answers_at_the_end_of_thinking_loses_nothing_unsaid(text, said):
    template = ENCODERS["thinking"].template
    try:
        rules = "".join(template.rendered([user("q"), says(text)]).rules)
    except BadRecord as error:
        rules = str(error)
    assert said in rules and bool(said) == bool(rules)
    assert not ENCODERS["chatml"].template.rendered([user("q"), says(text)]).rules


def test_a_template_that_leaves_out_what_is_called_is_followed_for_all_but_calls():
    arguments_alone = CHATML.replace(
        "+ m.content", "+ m.content + (m.tool_calls[0].function.arguments | tojson if m.tool_calls else '')"
    )
    tokenizer = byte_tokenizer(arguments_alone)
    encoder = Encoder(tokenizer, get_template("tokenizer", tokenizer))
    assert texts(encoder, [user("q"), says("a")])[0][1] == "a<|im_end|>"
    with pytest.raises(BadRecord, match="tool calls that the tokenizer's chat template cannot write"):
        encoder.template.rendered([user("q"), says("", calls=CALL)])
