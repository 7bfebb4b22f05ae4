"""Likelihood of held-out answers: loss, perplexity and bits per byte, for any ability that has data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from sftlab.data.examples import Examples
from sftlab.data.readers import Reader
from sftlab.data.source import FileSource
from sftlab.evaluate.local import LocalModel
from sftlab.stats.interval import normal
from sftlab.tasks.task import Score

READERS = {"math": "MathReader", "code": "AlpacaReader", "general": "ShareGPTReader", "messages": "MessagesReader"}


class Likelihood:
    """How likely a model finds the answers in a file; no text is generated.

    Loss and perplexity are per supervised token, so they compare models of one tokenizer; bits per byte divide by the
    bytes of the answers' text and compare any models.

    Args:
        path: Record file or hub id of held-out data.
        ability: math, code, general or messages: how its records are read.
        max_length: Tokens of a conversation at most; longer ones are split on exchanges.
        num_problems: Conversations at most, the first in the file.
    """

    name = "likelihood"

    def __init__(
        self, path: str, ability: str = "messages", max_length: int = 2048, num_problems: int | None = None
    ) -> None:
        if ability not in READERS:
            raise ValueError(f"--likelihood.ability: {ability!r} is not one of {', '.join(READERS)}")
        self.path, self.ability, self.max_length, self.num_problems = path, ability, max_length, num_problems

    def scores(self, model: LocalModel) -> list[Score]:
        """Loss, perplexity and bits per byte with 95 % intervals over conversations (delta method)."""
        from sftlab.data import readers

        reader: Reader = getattr(readers, READERS[self.ability])()
        examples = FileSource([self.path], reader).examples(self.ability, model.encoder, self.max_length)
        count = min(len(examples), self.num_problems or len(examples))
        nlls = answer_nlls(model, examples, range(count))
        tokens = [int(examples.mask(i).sum()) for i in range(count)]
        texts = [model.encoder.tokenizer.decode(examples.ids(i)[examples.mask(i)].tolist()) for i in range(count)]
        sizes = [len(str(text).encode()) for text in texts]
        loss, loss_error = _ratio(nlls, tokens)
        bits, bits_error = _ratio([nll / math.log(2) for nll in nlls], sizes)
        perplexity = math.exp(loss)
        return [
            self._score("loss", count, loss, loss_error),
            self._score("perplexity", count, perplexity, perplexity * loss_error),
            self._score("bits_per_byte", count, bits, bits_error),
        ]

    def _score(self, metric: str, count: int, value: float, error: float) -> Score:
        name = f"{self.name}_{self.ability}"
        return Score(name, metric, count, value, error, *normal(value, error))


@torch.inference_mode()
def answer_nlls(model: LocalModel, examples: Examples, indices: Sequence[int]) -> list[float]:
    """Negative log likelihood of the supervised tokens of each example, summed."""
    order = sorted(indices, key=lambda i: int(examples.lengths_N[i]))
    found: dict[int, float] = {}
    for start in range(0, len(order), model.batch_size):
        batch = order[start : start + model.batch_size]
        rows: list[Any] = [torch.from_numpy(examples.ids(i).astype("int64")) for i in batch]
        masks: list[Any] = [torch.from_numpy(examples.mask(i)) for i in batch]
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.model.device)
        mask_BT = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True).to(ids_BT.device)
        # Padding stands at the right, where causal attention never looks from a real token.
        logits_BTV = model.model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
        nll_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
        for index, total in zip(batch, (nll_BT * mask_BT[:, 1:]).sum(1).tolist(), strict=True):
            found[index] = total
    return [found[i] for i in indices]


def _ratio(tops: Sequence[float], bottoms: Sequence[int]) -> tuple[float, float]:
    """Sum over sum and its standard error over pairs, by the delta method."""
    n, total = len(tops), max(1, sum(bottoms))
    ratio = sum(tops) / total
    squares = sum((top - ratio * bottom) ** 2 for top, bottom in zip(tops, bottoms, strict=True))
    return ratio, math.sqrt(n / max(1, n - 1) * squares) / total
