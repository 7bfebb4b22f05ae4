"""Decoding: a cache is used where it gives what no cache gives, whatever the architecture."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from tiny import ARCHITECTURES, VOCABULARY, tiny

from sftlab.evaluate.decoding import Cached, Uncached, best_decoder


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"bert"}))
def test_texts_go_on_as_each_does_by_itself(name):
    model, generator = tiny(name).eval(), torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in (4, 9, 6)]
    with torch.inference_mode():
        texts, alone = best_decoder(model)(model, prompts), [list(prompt) for prompt in prompts]
        for alive in ([0, 1, 2], [0, 2], [0, 1]):
            wanted = [model(torch.tensor([text]), use_cache=False).logits[0, -1] for text in alone]
            torch.testing.assert_close(texts.logits(), torch.stack(wanted).float(), atol=1e-4, rtol=1e-3)
            tokens = [5 + i for i in alive]
            texts.go_on(alive, tokens)
            alone = [[*alone[i], token] for i, token in zip(alive, tokens, strict=True)]


def test_ordinary_attention_is_cached_and_recurrence_is_not():
    assert all(best_decoder(tiny(name).eval()) is Cached for name in ("llama", "gpt2", "qwen3", "mistral", "mixtral"))
    assert all(best_decoder(tiny(name).eval()) is Uncached for name in ("mamba", "rwkv"))
