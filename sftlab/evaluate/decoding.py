"""Decoding: next-token logits of several texts, with a key-value cache if the architecture's is exact.

Left-padded prompts and a cache are fast, but not exact for every architecture: recurrent layers process the padding,
some architectures have no positions, some have another kind of cache. So each model is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ERRORS = (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, NotImplementedError)


class Cached:
    """Left-padded texts with a cache: only new tokens are computed.

    Args:
        model: A causal LM.
        prompts: Token ids of each text.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        from transformers import DynamicCache

        self.model, self._cache = model, DynamicCache(config=model.config)
        self._step_BT, self._mask_BT = _left_padded(prompts, model.device)
        self._position_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)

    def logits(self) -> torch.Tensor:
        """Return the logits of the next token [B, V]."""
        output = self.model(
            input_ids=self._step_BT,
            attention_mask=self._mask_BT,
            position_ids=self._position_BT[:, -self._step_BT.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def go_on(self, alive: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the texts at these positions and append a token to each."""
        if len(alive) < len(self._mask_BT):
            keep = torch.tensor(alive, device=self.model.device)
            self._cache.batch_select_indices(keep)
            self._mask_BT, self._position_BT = self._mask_BT[keep], self._position_BT[keep]
        self._step_BT = torch.tensor(tokens, device=self.model.device)[:, None]
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(tokens), 1)], 1)
        self._position_BT = torch.cat([self._position_BT, self._position_BT[:, -1:] + 1], 1)


class Uncached:
    """Right-padded texts, recomputed for every token: slow, but exact for any causal model.

    Args:
        model: A causal LM.
        prompts: Token ids of each text.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.model, self._texts = model, [list(prompt) for prompt in prompts]

    def logits(self) -> torch.Tensor:
        """Return the logits of the next token [B, V]."""
        rows = [torch.tensor(text) for text in self._texts]
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
        logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
        last_B = torch.tensor([len(text) - 1 for text in self._texts], device=ids_BT.device)
        return logits_BTV[torch.arange(len(rows), device=ids_BT.device), last_B].float()

    def go_on(self, alive: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the texts at these positions and append a token to each."""
        self._texts = [[*self._texts[i], token] for i, token in zip(alive, tokens, strict=True)]


@torch.inference_mode()
def best_decoder(model: PreTrainedModel) -> type[Cached] | type[Uncached]:
    """Return ``Cached`` if it gives the same as ``Uncached`` on two random texts of unequal length."""
    generator, vocabulary = torch.Generator().manual_seed(0), model.config.get_text_config().vocab_size
    prompts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in (5, 12, 12)]
    steps = [((0, 1, 2), (1, 2, 3)), ((0, 2), (4, 5)), ((0, 1), (6, 7))]
    tolerance = 1e-3 if model.dtype == torch.float32 and model.device.type == "cpu" else 5e-2
    try:
        cached, uncached = Cached(model, prompts), Uncached(model, prompts)
        for alive, tokens in steps:
            wanted = uncached.logits()
            if (cached.logits() - wanted).abs().max() > tolerance * max(1.0, float(wanted.abs().max())):
                return Uncached
            cached.go_on(alive, tokens)
            uncached.go_on(alive, tokens)
    except _ERRORS:  # another cache, no positions or no padding: fall back to the exact form
        return Uncached
    return Cached


def _left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    return ids_BT, mask_BT
