"""Chat templates of strangers: what Hugging Face renders, never for ever, never without bound, on one day."""

import pytest
from chat_templates import TEMPLATES, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data.chat_template import ChatTemplate, Refused
from sftlab.data.conversation import Turn
from sftlab.data.template import get_template

TEXT = st.text("ab<|>/_imstarend \n{}%'\"é", max_size=12)
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"in": "Rome", "n": 1}}}


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        answer = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            answer["reasoning_content"] = answer["thinking"] = draw(TEXT)
        if draw(st.booleans()):
            answer["tool_calls"] = [CALL]
        messages.append(answer)
    return messages


@given(conversations(), st.sampled_from(sorted(TEMPLATES)), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_it_renders_what_hugging_face_renders(messages, name, generation, with_tools):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}] if with_tools else None
    try:
        wanted = tokenizer.apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=generation)
    except Exception:
        with pytest.raises(Refused):
            ChatTemplate(tokenizer).render(messages, tools, generation)
        return
    assert ChatTemplate(tokenizer).render(messages, tools, generation) == wanted


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ ['a'] * 10**10 }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'x'.zfill(2 * 10**9) }}",
        "{{ 'a' | indent(2 * 10**9) }}",
        "{{ [1] | batch(10**9, 'x') | list }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ '{:{}}'.format('a', 10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'a' | replace('', 'b' * 10**6) | replace('', 'b' * 10**6) }}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set b = 'a' * 9999999 %}{% set y %}{% for i in range(9999) %}{{ b }}{% endfor %}{% endset %}{{ y }}",
        "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% set x = b %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'aaa' }}{% endfor %}{% endfor %}",
        "{{ (['a' * 10**6] * 3000) | join }}",
        "{{ ''.join([['a' * 10**6] * 3000][0]) }}",
        "{% set x = ['a' * 10**6] * 40 %}{{ [x, x, x] }}",
        "{% set x = ['a' * 10**6] * 40 %}{{ [x, x] | string }}",
        "{% set x = ['a' * 10**6] * 40 %}{{ x | tojson(indent=2) }}",
        "{{ {'a': 1} | tojson(indent=10**9) }}",
        "{{ '%s' * 3000 % (('a' * 10**6,) * 3000) }}",
        "{{ ('{0}' * 100).format('a' * 10**6) }}",
        "{{ ('%(a)s' * 100) | format(a='a' * 10**6) }}",
        "{{ range(99999) | map('center', 99999) | join }}",
        "{{ ''.join(range(99999) | map('center', 99999)) }}",
        "{{ range(99999) | map('center', 99999) | list | length }}",
        "{{ ('a ' * 10**6) | wordwrap(1) }}",
        "{{ ('\\t' * 10**6).expandtabs(10**6) }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == [1] }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    ],
)
def test_what_never_ends_or_builds_too_much_is_told_at_once(source, monkeypatch):
    monkeypatch.setattr("sftlab.data.chat_template.MAX_LOOKS", 100_000)
    with pytest.raises(
        ValueError, match=r"data\.template: the tokenizer's chat template (builds more|does not|nests lists)"
    ):
        ChatTemplate(byte_tokenizer(source)).render([{"role": "user", "content": "q"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ lipsum(10**9) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('no') }}",
        "{% set n = namespace(a=1) %}{% set n.__x__ = 2 %}",
    ],
)
def test_what_a_sandbox_forbids_is_a_refusal(source):
    with pytest.raises(Refused):
        ChatTemplate(byte_tokenizer(source)).render([{"role": "user", "content": "q"}])


def test_what_a_list_or_a_form_holds_is_no_fault():
    code = "{" * 5000 + "%" * 5000 + "%12345678d" * 99
    messages = [{"role": "user", "content": code}, {"role": "assistant", "content": "b" * 10**6}] * 9
    joined = "{% set n = namespace(all=[]) %}{% for m in messages %}{% set n.all = n.all + [(m.role, m.content)] %}"
    joined += "{% endfor %}{{ n.all | map('join', ': ') | join('\\n') }}{{ '%s: %s' % n.all[0] }}{{ [1, 'a'] }}"
    pairs = [f"{m['role']}: {m['content']}" for m in messages]
    assert ChatTemplate(byte_tokenizer(joined)).render(messages) == "\n".join(pairs) + pairs[0] + "[1, 'a']"


@pytest.mark.parametrize("source", ["{{", "{% for %}", "{{" + "(" * 100_000])
def test_what_is_no_jinja_is_told(source):
    with pytest.raises(ValueError, match="not valid Jinja"):
        ChatTemplate(byte_tokenizer(source))


def test_a_template_that_prints_the_date_prints_one_day():
    day = "{{ '<|im_start|>system\\n' + strftime_now('%Y-%m-%d') + '<|im_end|>\\n' }}"
    template = get_template("tokenizer", byte_tokenizer(day + TEMPLATES["chatml"]))
    pieces = template.render([Turn("user", "q"), Turn("assistant", "a")])
    assert "2024-07-26" in pieces[1].text and [p.text for p in pieces if p.supervised] == ["a", "<|im_end|>"]


@pytest.mark.parametrize(
    "day",
    [
        "{{ strftime_now('%Y-%m-%d') }}", "\n  {{- strftime_now('%d %b %Y') }}\n",
        "\n\n{{ strftime_now('%B %-d, %A %H:%M') }}", "{% for m in messages %}{{ strftime_now('%y') }}{% endfor %}",
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b') %}{% else %}{% set day = '' %}{% endif %}"
        "{{ day }}",
        "{% macro today() %}{{ strftime_now('%x') }}{% endmacro %}{{ today() }}",
    ],
)  # fmt: skip
def test_an_exported_template_prints_the_day_of_training_wherever_it_is_rendered(day):
    tokenizer = byte_tokenizer(day + TEMPLATES["chatml"])
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    trained = ChatTemplate(tokenizer).render(messages)
    tokenizer.chat_template = get_template("tokenizer", tokenizer).chat_template()
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False) == ChatTemplate(tokenizer).render(messages) == trained
    )
    assert get_template("tokenizer", tokenizer).chat_template() == tokenizer.chat_template


def test_a_tokenizer_may_have_a_template_of_its_own_for_tools():
    tokenizer = byte_tokenizer(TEMPLATES["chatml"])
    tokenizer.chat_template = {"default": TEMPLATES["chatml"], "tool_use": TEMPLATES["thinking"]}
    render = ChatTemplate(tokenizer).render
    messages = [{"role": "user", "content": "q"}]
    assert "# Tools" in render(messages, [{"name": "x"}]) and "# Tools" not in render(messages)
    assert get_template("tokenizer", tokenizer).chat_template() == tokenizer.chat_template
