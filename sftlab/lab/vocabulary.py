"""Builds the lab's tokenizer: its vocabulary is the words that the generators use."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from sftlab.lab.abilities import lab_conversations
from sftlab.lab.options import LabOptions
from sftlab.lab.samples import ABILITIES
from sftlab.lab.text import base_text

SPECIAL = ("<pad>", "<s>", "</s>")
_OPTIONS = LabOptions(overlap=0.6, ambiguity=0.7)  # size of the text that the shipped file was made from


def build_tokenizer(written_by_templates: Sequence[str]) -> Tokenizer:
    """Build the tokenizer from the generators: special tokens, all bytes, and each word that they or templates use.

    It is a byte-level BPE without merges: a text's words are looked up whole, as Llama 3's tokenizer does first, and
    what is not found is spelled in bytes.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*_texts(), *written_by_templates]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)} - set(letters))
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters, *words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _texts() -> list[str]:
    """Generate enough text to contain every word, spelled as in the short template."""
    rng = random.Random("tokenizer")
    texts = [base_text(rng) for _ in range(8_000)]
    for ability in ABILITIES:
        for conversation in lab_conversations(ability, 4_000, options=_OPTIONS):
            texts += [f"{turn.role.upper()}: {turn.text}" for turn in conversation.turns]
    return texts
