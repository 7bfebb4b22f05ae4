"""Which weights an adapter leaves frozen because they belong to no linear layer, as the experts of most mixtures do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftlab.model.adapter import LoRA, is_linear
from sftlab.model.backbone import empty_model
from sftlab.model.parallel import decoder_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SMALL_SHARE = 0.02  # of weights: convolutions and the like
_known: dict[str, tuple[list[str], float]] = {}  # a study asks for one architecture many times


def unadapted(config: PretrainedConfig, lora: LoRA | None) -> list[str]:
    """A note on what an adapter of all linear layers leaves out of the blocks; none where that is next to nothing."""
    if lora is None or lora.target_modules:
        return []
    names, share = _no_linear_layers(config)
    if share < _SMALL_SHARE:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        f"LoRA adapts linear layers. {share:.0%} of the blocks' weights belong to none and stay frozen: "
        f"{', '.join(names[:3])}{more}."
    ]


def _no_linear_layers(config: PretrainedConfig) -> tuple[list[str], float]:
    """Names of the blocks' weights that are no linear layer's and no vectors, the largest first, and their share."""
    key = config.to_json_string(use_diff=False)
    if key not in _known:
        blocks, sizes = decoder_layers(empty_model(config)), dict[str, int]()
        linear = {f"{name}.weight" for name, layer in blocks.named_modules() if is_linear(layer)}
        for name, weight in blocks.named_parameters():
            if name not in linear and weight.dim() > 1:
                short = name.partition(".")[2]
                sizes[short] = sizes.get(short, 0) + weight.numel()
        total = sum(weight.numel() for weight in blocks.parameters())
        _known[key] = sorted(sizes, key=lambda name: (-sizes[name], name)), sum(sizes.values()) / total
    return _known[key]
