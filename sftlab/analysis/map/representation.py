"""Hidden states of prompts, layer by layer: one vector for each prompt and layer, streamed to files.

    prompts --sort by length--> batches --model--> [B, T, D] after each block --pool--> [B, D] --> layer_007.npy [N, D]
                              (padded right)        (a forward hook; never kept)               (mapped into memory)

Layer 0 is what enters the first block (the embeddings); layer i is what leaves block i, before the model's last norm.
Padding stands right of a prompt, where causal attention does not look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftlab.files import whole_folder
from sftlab.model.parallel import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLINGS = {
    "last": "state of the prompt's last token, from which the answer's first token is predicted",
    "mean": "mean over the tokens in which the prompts differ: what the template puts before and after does not count",
}


@dataclass(frozen=True)
class HiddenStates:
    """Pooled states on disk: layers 0 to ``num_blocks``, each a file [queries, hidden size] in float32."""

    folder: Path
    num_blocks: int

    def layer(self, number: int) -> np.ndarray:
        """Return the states [N, D] of one layer, mapped from disk."""
        return np.load(self.folder / _file_name(number), mmap_mode="r")


def _file_name(layer: int) -> str:
    return f"layer_{layer:03d}.npy"


def layer_number(text: str, num_blocks: int) -> int:
    """Return the layer that ``15`` (a number) or ``0.67`` (a fraction of the depth, 1.0 the last block) means.

    Raises:
        ValueError: It is neither, or there is no such layer.
    """
    if text.isdecimal() and int(text) <= num_blocks:
        return int(text)
    try:
        depth = float(text)
    except ValueError:
        depth = math.nan
    if "." in text and 0 <= depth <= 1:
        return math.floor(depth * num_blocks + 0.5)
    raise ValueError(
        f"--layer: {text!r} is not a layer; give 0 (embeddings) to {num_blocks} (the last block) or a fraction of the "
        "depth with a point, such as 0.67"
    )


def pooled_spans(prompts: Sequence[Sequence[int]], pooling: str) -> list[tuple[int, int]]:
    """Return for each prompt the first token and the one after the last over which states are averaged.

    A LLaMA's state of the first token can be a hundred times larger than the others (Sun et al. 2024, arXiv 2402.17762;
    116 times at layer 20 of SmolLM2-135M): a mean over everything would measure the prompt's length. So the beginning
    and end that all prompts share do not count.

    Raises:
        ValueError: There is no such pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"--pooling: {pooling!r} is not one of {', '.join(POOLINGS)}")
    if pooling == "last":
        return [(len(ids) - 1, len(ids)) for ids in prompts]
    lists = [list(ids) for ids in prompts]
    before, after = _num_shared(lists), _num_shared([ids[::-1] for ids in lists])
    starts = [min(before, len(ids) - 1) for ids in lists]
    return [(start, max(start + 1, len(ids) - after)) for start, ids in zip(starts, lists, strict=True)]


def _num_shared(lists: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens with which all of them begin."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))


def write_hidden_states(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    pooling: str = "last",
    batch_tokens: int = 8192,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> HiddenStates:
    """Run the prompts through a model and write one vector per prompt and layer.

    No logits are computed, and of the states only pooled ones leave the device.

    Args:
        model: A causal LM with its decoder layers in one list, in any precision.
        prompts: Token ids of each prompt.
        folder: Where layer_000.npy and so on go; it appears when all are complete.
        pooling: last or mean, see ``POOLINGS``.
        batch_tokens: Tokens of a batch, padding included; a longer prompt is a batch by itself.
        tell: Called with the prompts done and all of them.

    Raises:
        ValueError: No such pooling, or a prompt is longer than the model can read.
    """
    spans = pooled_spans(prompts, pooling)
    _refuse_too_long(model, prompts)
    layers, done = decoder_layers(model), 0
    model.eval()
    with whole_folder(folder) as partial, torch.inference_mode():
        collector = _Collector(partial, len(prompts))
        with collector.watching(layers):
            for rows in _batches([len(ids) for ids in prompts], batch_tokens):
                ids_BT, mask_BT = _right_padded([prompts[row] for row in rows], model.device)
                collector.expect(rows, [spans[row] for row in rows])
                model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
                done += len(rows)
                tell(done, len(prompts))
        collector.flush()
    return HiddenStates(folder, len(layers))


def _refuse_too_long(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    limit, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, prompts))
    if limit and longest > limit:
        raise ValueError(
            f"a query is {longest:,} tokens long as a prompt and the model reads {limit:,}; leave out the longer "
            f"ones with --data.max_length {limit}"
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Return row numbers in batches, sorted by length."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _right_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts], device=device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=device)
    return ids_BT, mask_BT


class _Collector:
    """Pools the states of each layer as they are computed and writes them to their rows on disk."""

    def __init__(self, folder: Path, num_prompts: int) -> None:
        self.folder, self.num_prompts = folder, num_prompts
        self._files: dict[int, np.memmap] = {}
        self._rows: list[int] = []
        self._spans: list[tuple[int, int]] = []

    def expect(self, rows: list[int], spans: list[tuple[int, int]]) -> None:
        """Set which prompts the next batch holds, and what of each is pooled."""
        self._rows, self._spans = rows, spans

    def take(self, layer: int, hidden_BTD: torch.Tensor) -> None:
        """Pool one layer's states of the batch."""
        pooled = [hidden_BTD[b, start:end].float().mean(0) for b, (start, end) in enumerate(self._spans)]
        if layer not in self._files:
            shape = (self.num_prompts, hidden_BTD.shape[-1])
            path = self.folder / _file_name(layer)
            self._files[layer] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        self._files[layer][self._rows] = torch.stack(pooled).cpu().numpy()

    @contextmanager
    def watching(self, layers: torch.nn.ModuleList) -> Iterator[None]:
        """Install hooks on these blocks."""

        def entering(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.take(0, args[0] if args else named["hidden_states"])

        def leaving(number: int) -> Callable[..., None]:
            return lambda module, args, output: self.take(number, output[0] if isinstance(output, tuple) else output)

        handles = [layers[0].register_forward_pre_hook(entering, with_kwargs=True)]
        handles += [layer.register_forward_hook(leaving(i)) for i, layer in enumerate(layers, start=1)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def flush(self) -> None:
        """Write out what is still in memory."""
        for file in self._files.values():
            file.flush()
