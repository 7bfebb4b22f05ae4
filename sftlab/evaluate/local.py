"""Generation with a model in this process: batched, left-padded, with a cache, independent of batch and order.

prompts, sorted by length      pad pad  a   b   c  | x1 x2 x3 stop
(left-padded, positions        pad  d   e   f   g  | y1 y2 stop          rows that stopped leave the batch
start at the first token)      h   i   j   k   l  | z1 z2 z3 z4 ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.template import get_template
from sftlab.evaluate.backend import Dialogue, dialogues
from sftlab.evaluate.decoding import Cached, Uncached, best_decoder
from sftlab.model.backbone import generation_ends, load_model, load_tokenizer
from sftlab.model.contents import noted_template
from sftlab.model.limits import unscaled_positions
from sftlab.tasks.task import Answer, Problem, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalModel:
    """Answers with a Hugging Face model in this process, using the template that the model was trained with.

    Args:
        model: A causal LM.
        encoder: Its tokenizer and template.
        batch_size: Number of prompts decoded together.
        ends: Token ids that end an answer, in addition to those of the encoder.
    """

    def __init__(
        self, model: PreTrainedModel, encoder: Encoder, batch_size: int = 64, ends: Sequence[int] = ()
    ) -> None:
        self.model, self.encoder, self.batch_size = model.eval(), encoder, batch_size
        self._stops = {*encoder.stop_ids, *ends}
        self._unscaled = unscaled_positions(model.config)
        # Some architectures (ALiBi, recurrent) have no limit of positions.
        self.max_positions = int(getattr(model.config, "max_position_embeddings", None) or sys.maxsize)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        batch_size: int = 64,
        device: str = "auto",
        trust_remote_code: bool = False,
        template: str = "",
    ) -> LocalModel:
        """Load a Hugging Face folder or id; bf16 on a GPU, fp32 on a CPU.

        ``template`` replaces the one that the folder was trained with or that its tokenizer has.

        Raises:
            ValueError: There is no model, or its tokenizer has no chat template.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            tokenizer = load_tokenizer(str(folder), trust_remote_code)
            model = load_model(str(folder), None, dtype, trust_remote_code)
            ends = generation_ends(str(folder))
        except ValueError as error:
            raise ValueError(f"checkpoint: {str(error).removeprefix('model.path: ')}") from error
        name = noted_template(folder) or "tokenizer"
        encoder = Encoder(tokenizer, get_template(template or name, tokenizer))
        return cls(model.to(device), encoder, batch_size, ends)  # type: ignore[arg-type]

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer turn by turn, the prompts of a turn sorted by length."""
        waiting = dialogues(problems, sampling)
        while waiting:
            prompts = [(self.encoder.prompt_ids(one.turns()), one) for one in waiting]
            for ids, one in prompts:
                if len(ids) >= self.max_positions:
                    one.end(f"the prompt fills the model's {self.max_positions:,} positions ({len(ids):,} tokens)")
            if ended := [one.answer() for _, one in prompts if one.missing]:
                yield ended
            prompts = sorted((pair for pair in prompts if not pair[1].missing), key=lambda pair: len(pair[0]))
            waiting = []
            lengths = [len(ids) + sampling.max_new_tokens for ids, _ in prompts]
            for start, end in self._batches(lengths):
                batch = prompts[start:end]
                asked = [one for _, one in batch]
                self._decode([ids for ids, _ in batch], asked, sampling.max_new_tokens)
                waiting += [one for one in asked if one.is_open]
                if done := [one.answer() for one in asked if not one.is_open]:
                    yield done

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Group texts, shortest first, into batches: single texts if batching changes this model's results."""
        start = 0
        while start < len(lengths):
            end = min(len(lengths), start + self.batch_size)
            while end > start + 1 and lengths[end - 1] > self._unscaled:
                end -= 1
            yield start, end
            start = end

    def reply(self, dialogue: Dialogue, max_new_tokens: int, tell: Callable[[str], None] = lambda text: None) -> None:
        """Answer the next prompt of a dialogue; if the prompt does not fit, end the dialogue.

        ``tell`` is called with the answer so far after each token that adds to it. A KeyboardInterrupt ends the answer
        there.
        """
        prompt = self.encoder.prompt_ids(dialogue.turns())
        if len(prompt) >= self.max_positions:
            dialogue.end(f"the talk fills the model's {self.max_positions:,} positions ({len(prompt):,} tokens)")
            return
        told = ""

        def look(ids: list[int]) -> None:
            nonlocal told
            text = self.encoder.decode_part(ids[:-1] if ids[-1] in self._stops else ids)
            if len(text) > len(told):
                told = text
                tell(text)

        try:
            self._decode([prompt], [dialogue], max_new_tokens, look)
        except KeyboardInterrupt:
            dialogue.add(told, False)

    def _begun(self, texts: Sequence[list[int]]) -> Cached | Uncached:
        is_scaled = max(map(len, texts)) > self._unscaled
        return (Uncached if is_scaled else self._decoder)(self.model, texts)

    @cached_property
    def _decoder(self) -> type[Cached] | type[Uncached]:
        return best_decoder(self.model)

    @torch.inference_mode()
    def _decode(
        self,
        prompts: list[list[int]],
        asked: list[Dialogue],
        max_new_tokens: int,
        look: Callable[[list[int]], None] | None = None,
    ) -> None:
        """Add one answer to each dialogue; ``look`` is called with the tokens of the first after each token."""
        stops, text = self._stops, self._begun(prompts)
        generators = [torch.Generator().manual_seed((one.seed + len(one.texts)) % 2**63) for one in asked]
        # Each row may use as many positions as it would alone, so that an answer does not depend on its batch.
        rooms = [min(max_new_tokens, self.max_positions - len(prompt)) for prompt in prompts]
        outputs: list[list[int]] = [[] for _ in asked]
        rows = list(range(len(asked)))
        while rows:
            logits_BV = text.logits()
            chosen = _choose(logits_BV, [asked[r].temperature for r in rows], [generators[r] for r in rows])
            for row, token in zip(rows, chosen, strict=True):
                outputs[row].append(token)
            if look is not None:
                look(outputs[0])
            alive = [i for i, r in enumerate(rows) if chosen[i] not in stops and len(outputs[r]) < rooms[r]]
            if not alive:
                break
            rows, chosen = [rows[i] for i in alive], [chosen[i] for i in alive]
            told = [prompts[row] + outputs[row] for row in rows]
            if max(map(len, told)) == self._unscaled + 1:  # from here on the cache belongs to the remaining rows
                text = self._begun(told)
            else:
                text.go_on(alive, chosen)
        for dialogue, output in zip(asked, outputs, strict=True):
            ended = bool(output) and output[-1] in stops
            dialogue.add(self.encoder.decode(output[:-1] if ended else output), ended)

    @torch.inference_mode()
    def answer_nlls(self, examples: Examples, indices: Sequence[int]) -> list[float]:
        """Compute the summed negative log likelihood of the supervised tokens of each example."""
        order = sorted(indices, key=lambda i: int(examples.lengths_N[i]))
        found: dict[int, float] = {}
        for start, end in self._batches([int(examples.lengths_N[i]) for i in order]):
            batch = order[start:end]
            rows: list[Any] = [torch.from_numpy(examples.ids(i).astype("int64")) for i in batch]
            masks: list[Any] = [torch.from_numpy(examples.mask(i)) for i in batch]
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
            mask_BT = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True).to(ids_BT.device)
            # Padding is on the right, where no real token attends to it.
            logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
            nll_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
            for index, total in zip(batch, (nll_BT * mask_BT[:, 1:]).sum(1).tolist(), strict=True):
                found[index] = total
        return [found[i] for i in indices]


def _choose(logits_BV: torch.Tensor, temperatures: list[float], generators: list[torch.Generator]) -> list[int]:
    """Choose the next token of each row: the likeliest, or one drawn by the row's own generator."""
    chosen: list[int] = logits_BV.argmax(-1).tolist()
    for row, temperature in enumerate(temperatures):
        if temperature > 0:
            probability_V = torch.softmax(logits_BV[row].cpu() / temperature, -1)
            chosen[row] = int(torch.multinomial(probability_V, 1, generator=generators[row]))
    return chosen
