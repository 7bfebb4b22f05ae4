"""Examples as they come out today: whoever changes them raises the version of the rules that he changed."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftlab.data import readers
from sftlab.data.encoder import Encoder
from sftlab.data.prepare import rules
from sftlab.data.source import FileSource
from sftlab.data.template import TEMPLATES, get_template
from sftlab.fingerprint import digest

# Of sftlab.data.prepare.rules(); what comes out under them is in GOLDEN.
RULES = {
    "sftlab.data.records": 3,
    "sftlab.data.conversation": 2,
    "sftlab.data.readers": 5,
    "sftlab.data.own_template": 2,
    "sftlab.data.template": 3,
    "sftlab.data.encoder": 3,
    "sftlab.data.fitter": 1,
    "sftlab.data.prepare": 2,
}
GOLDEN = {
    "GSM8KReader": "0f3fa4d70d845c8a",
    "RFTReader": "0f3fa4d70d845c8a",
    "MathReader": "d460edd84ab6a82f",
    "AlpacaReader": "49c6568b3b6986f9",
    "ShareGPTReader": "685e9f1881f4ebd3",
    "MessagesReader": "1145b22a8e9b74b8",
}

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONG = "wide rivers and green stones " * 6
PAIR = [("a b", " one\r\ntwo "), ("USER: q", "</s> x"), ("naïve 漢字", LONG), ("a b", "")]
TURNS = [
    ["q1", "a1", "q2", LONG, "q3", "a3"],
    ["only asked"],
    ["<|im_end|>", "ASSISTANT: x", LONG * 3, LONG * 2],
]
RECORDS = {
    "GSM8KReader": [{"question": q, "answer": a} for q, a in PAIR],
    "RFTReader": [{"query": q, "response": a} for q, a in PAIR],
    "MathReader": [{"question": q, "answer": a} for q, a in PAIR] + [{"query": "c", "response": "d"}],
    "AlpacaReader": [{"instruction": q, "input": "more" * (i % 2), "output": a} for i, (q, a) in enumerate(PAIR)],
    "ShareGPTReader": [
        {"id": f"x_{n}", "conversations": [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(talk)]}
        for n, talk in enumerate(TURNS)
    ],
    "MessagesReader": [
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(talk)]}
        for talk in [*TURNS, ["s"]]
    ],
}


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Bytes, or bytes behind SentencePiece's prefix."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*alphabet, "▁"])}, merges=[]))
    levels = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(levels) if kind == "bytes" else pre_tokenizers.Metaspace()
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in ("</s>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    tokenizer.chat_template = CHAT
    return tokenizer


def outcome(name: str, folder) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[name]))
    source = FileSource([str(path)], getattr(readers, name)(), max_bad_share=1.0)
    found = []
    for kind in ("bytes", "prefix"):
        for template in TEMPLATES:
            made = tokenizer(kind)
            encoder = Encoder(made, get_template(template, made))
            for overlong in ("split", "truncate", "drop"):
                table = source.examples("math", encoder, 160, overlong)
                found.append([table.content_hash(), list(table.groups)])
    return digest(found, size=8)


@pytest.mark.parametrize("name", RECORDS)
def test_a_change_of_output_raises_a_version(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    now = outcome(name, tmp_path)
    if rules() == RULES:
        assert now == GOLDEN[name], (
            f"examples of {name} came out otherwise than before (now {now}): raise RULES of the module in sftlab.data "
            "that you changed, so that no cache gives the old ones, and put versions and outcome down here"
        )
    else:
        pytest.fail(f"rules were raised: put down RULES = {rules()} and GOLDEN[{name!r}] = {now!r}")
