"""Likelihood of held-out answers: loss, perplexity and bits per byte, for any ability that has data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sftlab.bounds import within
from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.readers import Reader
from sftlab.data.source import FileSource
from sftlab.results.score import Score
from sftlab.stats.interval import normal
from sftlab.tasks.task import ModelTask, Problem, options_of

READERS = {"math": "MathReader", "code": "AlpacaReader", "general": "ShareGPTReader", "messages": "MessagesReader"}


class Rater(Protocol):
    """A model that computes the likelihood of texts."""

    encoder: Encoder

    def answer_nlls(self, examples: Examples, indices: Sequence[int]) -> list[float]:
        """Compute the summed negative log likelihood of the supervised tokens of each example."""


class Likelihood(ModelTask):
    """How likely a model finds the answers in a file; no text is generated.

    Loss and perplexity are per supervised token, so they compare models of one tokenizer; bits per byte divide by the
    bytes of the answers' text and compare any models.

    Args:
        path: Record file or hub id of held-out data.
        ability: math, code, general or messages: how its records are read.
        max_length: Maximum number of tokens of a conversation; longer ones are split on exchanges.
        num_problems: Use at most this many conversations, the first in the file.

    Raises:
        ValueError: The ability cannot be read, or a number is out of bounds.
    """

    name = "likelihood"
    best = None

    def __init__(
        self, path: str, ability: str = "messages", max_length: int = 2048, num_problems: int | None = None
    ) -> None:
        if ability not in READERS:
            raise ValueError(f"likelihood.ability: {ability!r} is not one of {', '.join(READERS)}")
        self.name = f"likelihood_{ability}"
        options_of("likelihood", num_problems)
        within("likelihood.max_length", max_length, 8, 10_000_000, is_whole=True)
        self.path, self.ability, self.max_length, self.num_problems = path, ability, max_length, num_problems
        self._texts = ""

    def problems(self) -> list[Problem]:
        """Return no problems.

        Raises:
            ValueError: There is no such file.
        """
        if not self.path.startswith("hub:") and not Path(self.path).exists():
            raise ValueError(f"likelihood.path: no such file: {self.path}")
        return []

    def grading(self) -> dict[str, Any]:
        """Return how texts are cut and, once they have been read, their hash."""
        return {"max_length": self.max_length, "texts": self._texts}

    def measure(self, model: Rater) -> list[Score]:
        """Compute loss, perplexity and bits per byte with 95 % intervals over conversations (delta method).

        Raises:
            ValueError: The file has no conversation that can be read.
        """
        from sftlab.data import readers

        reader: Reader = getattr(readers, READERS[self.ability])()
        examples = FileSource([self.path], reader).examples(self.ability, model.encoder, self.max_length)
        count = min(len(examples), self.num_problems or len(examples))
        if not count:
            raise ValueError(f"likelihood.path: {self.path} has no conversation that can be read as {self.ability}")
        self._texts = hashlib.blake2b(examples.content_NB[:count].tobytes(), digest_size=8).hexdigest()
        nlls = model.answer_nlls(examples, range(count))
        tokens = [int(examples.mask(i).sum()) for i in range(count)]
        texts = [model.encoder.tokenizer.decode(examples.ids(i)[examples.mask(i)].tolist()) for i in range(count)]
        sizes = [len(str(text).encode()) for text in texts]
        loss, loss_error = _ratio(nlls, tokens)
        bits, bits_error = _ratio([nll / math.log(2) for nll in nlls], sizes)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return [
            self._score("loss", count, loss, loss_error),
            self._score("perplexity", count, perplexity, perplexity * loss_error),
            self._score("bits_per_byte", count, bits, bits_error),
        ]

    def _score(self, metric: str, count: int, value: float, error: float) -> Score:
        return Score(self.name, metric, count, value, error, *normal(value, error))


def _ratio(tops: Sequence[float], bottoms: Sequence[int]) -> tuple[float, float]:
    """Compute sum over sum and its standard error over pairs, by the delta method."""
    n, total = len(tops), max(1, sum(bottoms))
    ratio = sum(tops) / total
    squares = sum((top - ratio * bottom) ** 2 for top, bottom in zip(tops, bottoms, strict=True))
    return ratio, math.sqrt(n / max(1, n - 1) * squares) / total
