"""NEFTune: noise on the embeddings in training (arXiv 2310.05914), reproducible and independent of packing.

An example of L tokens with embeddings of size d gets uniform noise in [-1, 1] times alpha / sqrt(L d). Each example has
its own generator, so rows, micro-batches, ranks and a resume change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Noise(NamedTuple):
    """The noise of one micro-batch.

    Attributes:
        alpha: Its scale.
        seeds_D: Seed of each example's generator.
    """

    alpha: float
    seeds_D: Sequence[int]

    def drawn(self, lengths_D: Sequence[int], size: int, device: torch.device) -> torch.Tensor:
        """Draw the noise of all examples, concatenated [T, size]."""
        generator, parts = torch.Generator(device), []
        for length, seed in zip(lengths_D, self.seeds_D, strict=True):
            part = torch.empty(length, size, device=device).uniform_(-1, 1, generator=generator.manual_seed(seed))
            parts.append(part * (self.alpha / math.sqrt(length * size)))
        return torch.cat(parts)


@contextmanager
def noisy_embeddings(
    model: Any, noise: Noise | None, lengths_D: Sequence[int], laid_out: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Add noise to the output of a model's embedding, inside the block.

    Args:
        model: A causal LM.
        noise: None adds none.
        lengths_D: Tokens of each example.
        laid_out: Brings the noise of all tokens [T, C] into the layout of the model's rows.
    """
    if noise is None:
        yield
        return

    def add(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + laid_out(noise.drawn(lengths_D, output.shape[-1], output.device)).to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
