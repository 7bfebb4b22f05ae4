"""The shipped tokenizer: words whole, digits single, everything else in bytes; and the same when made again."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sftlab.data.template import WRITTEN
from sftlab.lab.abilities import lab_conversations
from sftlab.lab.samples import ABILITIES
from sftlab.lab.tokenizer import TOKENIZER_FILE, lab_tokenizer
from sftlab.lab.vocabulary import build_tokenizer


def test_round_trips_with_single_digits_and_bos():
    tokenizer = lab_tokenizer()
    text = "Kate has 127 leaves.\n  def f(x): # été 😀"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == text
    assert {"1", "2", "7"} <= set(tokenizer.convert_ids_to_tokens(ids))
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) <= 1024


@given(st.text(max_size=100))
def test_any_text_round_trips(text):
    tokenizer = lab_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_words_of_the_lab_are_single_tokens():
    tokenizer = lab_tokenizer()
    for ability in ABILITIES:
        for conversation in lab_conversations(ability, 300):
            for turn in conversation.turns:
                tokens = tokenizer.convert_ids_to_tokens(tokenizer(f"USER: {turn.text}")["input_ids"])
                spelled = [token for token in tokens if len(token.strip("Ġ")) == 1 and token.strip("Ġ").isalpha()]
                assert {token.strip("Ġ") for token in spelled} <= {"x", "n", "a", "f", "I", "Ċ"}


def test_the_shipped_file_is_what_the_generators_give():
    assert json.loads(build_tokenizer(WRITTEN).to_str()) == json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
