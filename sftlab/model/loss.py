"""The loss: computed where a token is supervised, weighted so that a whole optimizer step has one denominator.

For a step with supervised tokens S, examples E of abilities A (s_e supervised tokens in example e, S_a in ability a):

    token     sum over tokens of nll / S                    every supervised token counts the same (default)
    example   sum over examples of (mean nll of e) / E      short and long answers count the same
    ability   sum over abilities of (mean nll of a) / A     abilities count the same, whatever their share

A stage's loss weights w_a multiply what an ability adds above and below the line, so that a step's loss stays a mean:

    token     sum over tokens of w_a nll / sum of w_a S_a
    example   sum over examples of w_a (mean nll of e) / sum of w_a over the examples
    ability   sum over abilities of w_a (mean nll of a) / sum of w_a over the abilities

The weights come from the plan, so any split of a step into micro-batches and ranks gives the same gradient.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sftlab.data.feed import Batch
from sftlab.model.attention import PER_DOCUMENT
from sftlab.model.noise import Noise, noisy_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Normalisation = Literal["token", "example", "ability"]
# Architectures that change the logits after the head have one of these attributes; they take the slow, exact path.
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
)


def example_weights(
    batch: Batch,
    normalise: Normalisation,
    supervised_A: torch.Tensor,
    examples_A: torch.Tensor,
    weights_A: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weight [D] of each example's supervised tokens in the loss of the whole optimizer step.

    Args:
        batch: One micro-batch.
        normalise: token, example or ability.
        supervised_A: Supervised tokens of each ability in the whole step.
        examples_A: Examples of each ability in the whole step.
        weights_A: Relative weight of each ability in the loss; the same by default.
    """
    supervised_D = batch.supervised_D.float()
    if weights_A is None:
        weights_A = torch.ones(len(supervised_A))
    units_A = {"token": supervised_A, "example": examples_A, "ability": supervised_A > 0}[normalise]
    total = float((weights_A.double() * units_A.double()).sum()) or 1.0
    below_D = torch.full_like(supervised_D, total)
    if normalise == "example":
        below_D = supervised_D.clamp(min=1) * total
    elif normalise == "ability":
        below_D = supervised_A.clamp(min=1).float().to(supervised_D.device)[batch.ability_D] * total
    weight_D = weights_A.float().to(supervised_D.device)[batch.ability_D] / below_D
    return torch.where(supervised_D > 0, weight_D, 0.0)


class SupervisedLoss(nn.Module):
    """Backbone and loss in one module, which FSDP shards and DDP wraps.

    Args:
        model: A causal LM with caching off.
        chunk_tokens: Supervised tokens whose logits are held at once; None holds all of a micro-batch's. Less memory
            for one more forward pass of the head.

    Attributes:
        has_plain_head: Whether the head alone computes the logits from the hidden states, so that it can skip tokens
            that are not trained; otherwise the whole model computes them.
        in_bf16: Whether the model computes in bf16 with weights of another type, as FSDP2 gathers them.
        row_multiple: Rows are padded to a multiple of this many tokens, for a compiled model.
    """

    in_bf16 = False
    row_multiple = 1

    def __init__(self, model: PreTrainedModel, chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        changed = any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES)
        self.has_plain_head = not changed and model.base_model is not model

    def forward(
        self, batch: Batch, weight_D: torch.Tensor, noise: Noise | None = None, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the weighted sum of the tokens' losses, and the negative log likelihood of each [K], detached.

        Args:
            batch: One micro-batch.
            weight_D: Weight of the supervised tokens of each example.
            noise: Noise on the embeddings, in training.
            smoothing: Fraction of each target spread evenly over the vocabulary, in training.
        """
        weight_K = weight_D[batch.example_K]
        if not self.has_plain_head:
            logits_KV = self._positions(batch, False, noise)[batch.keep_K]
            loss_K, nll_K = _losses(logits_KV.float(), batch.target_K, smoothing)
            return (loss_K * weight_K).sum(), nll_K.detach()
        hidden_KC = self._positions(batch, True, noise)[batch.keep_K]
        if self.chunk_tokens is None:
            loss_K, nll_K = self._head(hidden_KC, batch.target_K, smoothing)
        else:
            chunks = zip(hidden_KC.split(self.chunk_tokens), batch.target_K.split(self.chunk_tokens), strict=True)
            pieces = [checkpoint(self._head, h, t, smoothing, use_reentrant=False) for h, t in chunks]
            loss_K, nll_K = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return (loss_K * weight_K).sum(), nll_K.detach()

    def _head(
        self, hidden_KC: torch.Tensor, target_K: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        padding = self._padding(len(hidden_KC)) if hidden_KC.device.type == "cpu" else 0
        logits_KV = self.model.get_output_embeddings()(F.pad(hidden_KC, (0, 0, 0, padding)))
        return _losses(logits_KV[: len(target_K)].float(), target_K, smoothing)

    def _padding(self, length: int) -> int:
        """Return the padding to a multiple of 64 in bf16: a CPU compiles a kernel for every shape that it meets."""
        bf16 = self.in_bf16 or torch.is_autocast_enabled("cpu") or torch.get_default_dtype() == torch.bfloat16
        return -length % 64 if bf16 else 0

    def _positions(self, batch: Batch, hidden: bool, noise: Noise | None) -> torch.Tensor:
        """Compute hidden states or logits of every token [T, .], with the row layout of the attention in use."""
        attention = self.model.config._attn_implementation
        run = self.model.base_model if hidden else self.model
        flat = attention in (PER_DOCUMENT, "flash_attention_2")
        extra: dict[str, Any] = {"use_cache": False}
        if attention == PER_DOCUMENT:
            padding = self._padding(len(batch.ids_T))
            ids, positions = (F.pad(x, (0, padding))[None] for x in (batch.ids_T, batch.positions_T))
            extra["document_lengths"] = [*batch.lengths_D, *([padding] if padding else [])]
        elif flat:
            ids, positions = batch.ids_T[None], batch.positions_T[None]
        else:
            ids, positions = (self._pad_rows(x, batch.row_lengths_R) for x in (batch.ids_T, batch.positions_T))
        # No attention mask and no cache: only then does transformers derive the examples from the positions.
        extra["position_ids"] = positions

        def laid_out(noise_TC: torch.Tensor) -> torch.Tensor:
            if flat:
                return F.pad(noise_TC, (0, 0, 0, ids.shape[1] - len(noise_TC)))[None]
            return self._pad_rows(noise_TC, batch.row_lengths_R)

        with noisy_embeddings(self.model, noise, batch.lengths_D, laid_out):
            output = run(input_ids=ids, **_taken(run, extra))
        states = output.last_hidden_state if hidden else output.logits
        if flat:
            return states[0, : len(batch.ids_T)]
        return torch.cat([row[:length] for row, length in zip(states, batch.row_lengths_R, strict=True)])

    def _pad_rows(self, values_T: torch.Tensor, lengths_R: list[int]) -> torch.Tensor:
        """Pad to rows [R, longest] with zeros, which count as examples of one token each."""
        rows = nn.utils.rnn.pad_sequence(list(values_T.split(lengths_R)), batch_first=True)
        lacking = -rows.shape[1] % self.row_multiple
        return F.pad(rows, (0,) * (2 * (rows.dim() - 2)) + (0, lacking)) if lacking else rows


def _losses(logits_KV: torch.Tensor, target_K: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the training loss and the negative log likelihood, each [K]; they are equal without smoothing.

    With a fraction s of each target spread over V tokens: (1 - s) nll + s mean of -log p, that is nll + s (target's
    logit - mean logit) (Szegedy et al., arXiv 1512.00567).
    """
    nll_K = F.cross_entropy(logits_KV, target_K, reduction="none")
    if not smoothing:
        return nll_K, nll_K
    target_logit_K = logits_KV.gather(1, target_K[:, None])[:, 0]
    return nll_K + smoothing * (target_logit_K - logits_KV.mean(1)), nll_K


def _taken(run: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that an architecture accepts: some have no positions."""
    known = signature(run.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return options
    return {name: value for name, value in options.items() if name in known}
