"""Isolation: tests, before training, whether the model computes a packed example as it would alone.

Most attentions derive from the positions where examples begin; recurrent and convolutional layers and some unusual
attentions do not, and give no error. Three forward passes over random tokens, in the layout of training:

    together     A A A A A A A A A B B B B C C
    otherwise    a a a a a a a a a B B B B C c     B and what stands before c must not change at all
    alone        B B B B      C C                  must be the same up to rounding
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from sftlab.data.feed import Batch
from sftlab.model.attention import PER_DOCUMENT
from sftlab.model.limits import unscaled_positions
from sftlab.model.loss import SupervisedLoss
from sftlab.processes import is_lost_process

_SHORT = (23, 11)  # tokens of B and C
_ERRORS = (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, NotImplementedError, ImportError)


def use_isolating_attention(
    net: SupervisedLoss, names: Sequence[str], max_length: int, packing: bool, device: torch.device
) -> str:
    """Set the first attention implementation that keeps examples apart; return its name.

    Args:
        net: The model as it will be trained.
        names: Implementations in the order of preference.
        max_length: Maximum number of tokens of an example.
        packing: Whether several examples share a row; otherwise each has its own.
        device: The model's device.

    Raises:
        ValueError: No implementation does; the message says what happens and what to set.
    """
    troubles = {}
    for name in names:
        troubles[name] = trouble(net, name, max_length, packing, device)
        if not troubles[name]:
            return name
    kind, tried = net.model.config.model_type, f"tried with attention {', '.join(names)}"
    if not (leaks := [one for one in troubles.values() if "by " in one]):
        said = "; ".join(f"{name}: {one}" for name, one in troubles.items())
        raise ValueError(f"model: {kind} cannot be trained here, a forward pass fails ({said})")
    if (most := unscaled_positions(net.model.config)) < max_length:
        raise ValueError(
            f"model: {kind} scales its positions by the longest example of a batch once that has more than {most:,} "
            f"tokens, so that examples change one another: {leaks[0]}. Set data.max_length: {most} or less"
        )
    if packing:
        remedy = "Set data.packing: false, which gives every example a row of its own"
        raise ValueError(f"model: {kind} does not keep packed examples apart: {leaks[0]} ({tried}). {remedy}")
    raise ValueError(f"model: {kind} does not compute an example in a row of its own as alone: {leaks[0]} ({tried})")


def trouble(net: SupervisedLoss, name: str, max_length: int, packing: bool, device: torch.device) -> str:
    """Return what is wrong under an attention implementation, which stays set; empty if nothing is."""
    lengths = _lengths(max_length)
    docs, other = _examples(net.model.config.get_text_config().vocab_size, lengths)
    was_training = net.training
    net.eval()  # dropout would hide any difference
    rounding = _rounding(net, name, device)
    try:
        with torch.no_grad(), _as_in_training(net, name, device):
            plain = _plain_nll(net, name, docs[1:], device)
            _set_attention(net, name)
            _try_head(net, docs[-1], rounding, device)
            fresh = torch.cat([_nll(net, [doc], packing, device) for doc in docs[1:]])
            together, otherwise = (_nll(net, examples, packing, device) for examples in (docs, other))
            alone = torch.cat([_nll(net, [doc], packing, device) for doc in docs[1:]])
            longest = docs[0].repeat(max_length)[:max_length]
            long_nll = _nll(net, [longest], packing, device)
            long_plain = _plain_long_nll(net, name, longest, device)
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        if is_lost_process(error):  # this is not the model's fault
            raise
        return f"fails with {type(error).__name__} {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    finally:
        net.train(was_training)
    first, last = lengths[0] - 1, -1
    leak = _largest(together[first:last] - otherwise[first:last])
    if leak > (1e-2 if rounding > 1e-3 and _has_experts(net) else 1e-6):
        return f"the content of another example, or later text, changes a token's loss by {leak:.1e}"
    if (apart := _largest(together[first:] - alone)) > rounding:
        return f"in company a token's loss differs by {apart:.1e} from that of the example alone"
    if (after := _largest(fresh - alone)) > rounding:
        return f"a token's loss differs by {after:.1e} after a longer example was computed"
    for own, ours in ((plain, alone), (long_plain, long_nll)):
        if own is not None and (changed := _largest(own - ours)) > rounding:
            return f"it is another attention than the architecture's own: a token's loss differs by {changed:.1e}"
    return ""


@contextmanager
def _as_in_training(net: SupervisedLoss, name: str, device: torch.device) -> Iterator[None]:
    """Compute in full precision, to see more, unless the weights or the attention have only bf16."""
    before, weights = torch.get_default_dtype(), next(net.parameters()).dtype
    torch.set_default_dtype(weights if weights.is_floating_point else before)
    try:
        with torch.autocast(device.type, enabled=name == "flash_attention_2", dtype=torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(before)


def _try_head(net: SupervisedLoss, doc: torch.Tensor, rounding: float, device: torch.device) -> None:
    """Let the whole model compute the logits if the head alone gives other ones."""
    if net.has_plain_head:
        short = _nll(net, [doc], False, device)
        net.has_plain_head = False
        net.has_plain_head = _largest(short - _nll(net, [doc], False, device)) <= rounding / 10


def _set_attention(net: SupervisedLoss, name: str) -> None:
    model = net.model
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise NotImplementedError(f"{type(model).__name__} has no attention {name}")


def _plain_nll(net: SupervisedLoss, name: str, docs: list[torch.Tensor], device: torch.device) -> torch.Tensor | None:
    """Return the losses of examples alone under the architecture's default attention, if ours was requested."""
    if name != PER_DOCUMENT:
        return None
    try:
        _set_attention(net, "eager")
        return torch.cat([_nll(net, [doc], False, device) for doc in docs])
    except NotImplementedError:
        return None


def _plain_long_nll(net: SupervisedLoss, name: str, longest: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """Like ``_plain_nll`` for the longest example, which alone shows windows and chunks; by sdpa, to save memory."""
    if name != PER_DOCUMENT:
        return None
    try:
        for own in ("sdpa", "eager"):
            with suppress(NotImplementedError, ValueError):
                _set_attention(net, own)
                return _nll(net, [longest], False, device)
        return None
    finally:
        _set_attention(net, name)


def _lengths(max_length: int) -> list[int]:
    """Return the lengths of three examples that fill a row; the later ones are short, with at least two tokens."""
    short = [max(2, min(length, max_length // 4)) for length in _SHORT]
    return [max(2, max_length - sum(short)), *short]


def _examples(vocabulary: int, lengths: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return random examples, and the same with the first one and the last token of the last one replaced."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(vocabulary, (length,), generator=generator) for length in [*lengths, lengths[0]]]
    docs, last = draw[:-1], draw[-2].clone()
    last[-1] = (last[-1] + vocabulary // 2) % vocabulary
    return docs, [draw[-1], *docs[1:-1], last]


def _nll(net: SupervisedLoss, docs: Sequence[torch.Tensor], packing: bool, device: torch.device) -> torch.Tensor:
    """Compute the loss of every token of some examples except the first of each."""
    lengths = [len(doc) for doc in docs]
    ids_T, positions_T = torch.cat(list(docs)), torch.cat([torch.arange(length) for length in lengths])
    keep_K = (positions_T > 0).nonzero()[:, 0] - 1
    owner_T = torch.repeat_interleave(torch.arange(len(docs)), torch.tensor(lengths))
    batch = Batch(
        step=0,
        ids_T=ids_T,
        positions_T=positions_T,
        lengths_D=lengths,
        row_lengths_R=[sum(lengths)] if packing else lengths,
        keep_K=keep_K,
        target_K=ids_T[keep_K + 1],
        example_K=owner_T[keep_K],
        ability_D=torch.zeros(len(docs), dtype=torch.long),
        supervised_D=torch.tensor(lengths) - 1,
        number_D=list(range(len(docs))),
    ).to(device)
    return net(batch, torch.ones(len(docs), device=device))[1].float()


def _largest(differences: torch.Tensor) -> float:
    return float(differences.abs().max()) if differences.numel() else 0.0


def _has_experts(net: SupervisedLoss) -> bool:
    """Return whether tokens are sorted by expert: rounding then depends on all tokens."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(net.model.config.get_text_config(), name, 0) or 0) > 1 for name in names)


def _rounding(net: SupervisedLoss, name: str, device: torch.device) -> float:
    """Return how much rounding may change a token's loss."""
    is_half = name == "flash_attention_2" or net.in_bf16 or next(net.parameters()).dtype != torch.float32
    return 0.3 if is_half else 1e-3 if device.type == "cpu" else 2e-2
