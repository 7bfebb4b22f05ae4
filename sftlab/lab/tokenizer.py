"""The lab's tokenizer: whole words, single digits, bytes for everything else; it ships as a file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILE = Path(__file__).parent / "bases" / "tokenizer.json"
_MAX_LENGTH = 1024


@functools.cache
def lab_tokenizer() -> PreTrainedTokenizerFast:
    """Return the shipped tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER_FILE),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=_MAX_LENGTH,
    )
