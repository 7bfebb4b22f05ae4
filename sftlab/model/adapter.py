"""Adapters: low-rank weights beside frozen ones (LoRA, Hu et al. 2021, arXiv 2106.09685).

    y = W x + (alpha / r) B A dropout(x)        W [out, in] is frozen; A [r, in] starts random, B [out, r] at zero

A and B are children of the linear layer that they adapt, so the weights of the base keep their names. What is written
follows PEFT's format. Merging is W + (alpha / r) B A, computed in fp32, the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from sftlab.bounds import within
from sftlab.fingerprint import digest
from sftlab.model.sharded import local, rows_of, whole
from sftlab.plan.plan import StagePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StageMode = Literal["carried", "merged", "off"]
_A, _B = "lora_A", "lora_B"
_TRANSPOSED = "Conv1D"  # of transformers: a linear layer whose weight is [in, out]


class LoRA:
    """Low-rank adaptation of the linear layers of the decoder blocks; all other weights stay frozen.

    Args:
        r: Rank of the matrices.
        alpha: Scale: the product of the matrices is multiplied by alpha / r.
        dropout: Dropout probability of the adapters' inputs.
        target_modules: Names of the layers to adapt, such as q_proj; by default all linear layers of the blocks.
        stages: What a stage does with the adapter, for all stages or by stage name. ``carried`` continues with that of
            the previous stage; ``merged`` trains it and adds it to the weights when the next stage begins, which
            starts a new one; ``off`` trains all weights without an adapter.
        quantise: nf4 holds the frozen base in 4 bits (QLoRA, arXiv 2305.14314). Needs bitsandbytes and a GPU; not yet
            tested on one.

    Raises:
        ValueError: An option has an invalid value.
    """

    def __init__(
        self,
        r: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        target_modules: list[str] | None = None,
        stages: StageMode | dict[str, StageMode] = "carried",
        quantise: Literal["nf4"] | None = None,
    ) -> None:
        within("model.adapter.r", r, 1, 10**5, is_whole=True)
        within("model.adapter.alpha", alpha, 0, 1e6)
        within("model.adapter.dropout", dropout, 0, 1)
        for mode in stages.values() if isinstance(stages, dict) else [stages]:
            if mode not in get_args(StageMode):
                raise ValueError(f"model.adapter.stages: {mode!r} is not one of {', '.join(get_args(StageMode))}")
        self.r, self.alpha, self.dropout, self.target_modules = r, alpha, dropout, target_modules
        self.stages, self.quantise = stages, quantise
        if quantise and self.changes_base:
            raise ValueError(
                "model.adapter: weights in 4 bits cannot be changed; stages merged and off need quantise: null"
            )

    @property
    def changes_base(self) -> bool:
        """Whether any stage changes the weights of the base."""
        return bool({"merged", "off"} & set(self.stages.values() if isinstance(self.stages, dict) else [self.stages]))

    @property
    def trains_base(self) -> bool:
        """Whether any stage trains all weights."""
        return "off" in (self.stages.values() if isinstance(self.stages, dict) else [self.stages])

    @property
    def scale(self) -> float:
        """The factor of the product of the two matrices."""
        return self.alpha / self.r

    def mode(self, stage: str) -> StageMode:
        """Return what a stage does with the adapter."""
        return self.stages.get(stage, "carried") if isinstance(self.stages, dict) else self.stages

    def check(self, stages: Sequence[str]) -> None:
        """Check that all named stages exist.

        Raises:
            ValueError: A stage does not exist.
        """
        unknown = sorted(set(self.stages) - set(stages)) if isinstance(self.stages, dict) else []
        if unknown:
            raise ValueError(f"model.adapter.stages: no stage named {unknown}; the stages are {list(stages)}")

    def settings(self) -> dict[str, Any]:
        """Return the options that determine the weights, except the stages' modes, which are in the stages' keys."""
        return {name: value for name, value in vars(self).items() if name != "stages"}

    def begins(self, before: str | None, stage: str) -> bool:
        """Return whether a stage starts a new adapter after merging that of the previous stage."""
        if before is None or self.mode(before) == "off":
            return False
        return self.mode(before) == "merged" or self.mode(stage) == "off"

    def key(self, before: str | None, stage: str) -> list[bool]:
        """Return the effect of the modes on a stage's weights, given its initial weights; part of the stage's key."""
        return [self.begins(before, stage), self.mode(stage) == "off"]


class LiveAdapter:
    """The adapter of a model in training.

    Args:
        lora: Its options.
        model: A causal LM, whole on this process; the adapter is attached to it.
        blocks: The decoder blocks of the model.
        seed: Seed of the random matrices.
        base: Hash of the base's weights; empty if they are random and cannot be loaded again.

    Attributes:
        is_base_changed: Whether the weights of the base differ from those that were loaded.

    Raises:
        ValueError: A target module does not exist.
    """

    def __init__(self, lora: LoRA, model: PreTrainedModel, blocks: nn.Module, seed: int, base: str) -> None:
        self.lora, self.base, self.is_base_changed = lora, base, False
        self._model, self._seed = model, seed
        self.targets = attach(lora, model, blocks)
        self.start("")

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Names and modules of the adapted layers."""
        return ((name, layer) for name, layer in self._model.named_modules() if hasattr(layer, _A))

    @torch.no_grad()
    def start(self, stage: str) -> None:
        """Initialise the adapter: B is zero, A uniform as in ``nn.Linear``, whatever the number of processes."""
        for name, layer in self.layers():
            generator = torch.Generator().manual_seed(int(digest(self._seed, stage, name, size=7), 16))
            a, b = getattr(layer, _A).weight, getattr(layer, _B).weight
            drawn = torch.empty(a.shape).uniform_(-1, 1, generator=generator) / math.sqrt(a.shape[1])
            local(a).copy_(_part(drawn, a))
            local(b).zero_()

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the weights of the base."""
        self.is_base_changed = True
        for _, layer in self.layers():
            a, b = (whole(getattr(layer, name).weight) for name in (_A, _B))
            weight = layer.weight
            rows = rows_of(weight)
            local(weight).copy_(merged(local(weight), a, b, self.lora.scale, is_transposed(layer), rows))

    def begin_stage(self, before: StagePlan | None, stage: StagePlan) -> bool:
        """Prepare the first step of a stage; return whether it starts a new adapter."""
        name = stage.stage.name
        begins = self.lora.begins(before.stage.name if before is not None else None, name)
        if begins:
            self.merge()
            self.start(name)
        self.is_base_changed |= self.lora.mode(name) == "off"
        return begins

    def drop_gradients(self, stage: StagePlan) -> None:
        """Drop the gradients of weights that a stage does not train."""
        if not self.lora.trains_base:
            return
        is_off = self.lora.mode(stage.stage.name) == "off"
        for name, parameter in self._model.named_parameters():
            if is_adapter(name) == is_off:
                parameter.grad = None

    @property
    def is_apart(self) -> bool:
        """Whether the model equals the base on disk plus the adapter."""
        return bool(self.base) and not self.is_base_changed

    def is_kept(self, name: str) -> bool:
        """Return whether a checkpoint holds the weight of this name; weights of an unchanged base are left out."""
        return is_adapter(name) or not self.is_apart

    def note(self) -> dict[str, Any]:
        """Return what a checkpoint holds about the adapter besides its weights."""
        return {"base": self.base, "is_base_changed": self.is_base_changed, **self.config()}

    def config(self) -> dict[str, Any]:
        """Return the options needed to merge the adapter, under PEFT's names."""
        lora = self.lora
        return {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": self.targets}


def attach(lora: LoRA, model: PreTrainedModel, blocks: nn.Module) -> list[str]:
    """Attach an adapter to the linear layers of the blocks; return the names of these layers.

    Raises:
        ValueError: A target module does not exist.
    """
    if not lora.trains_base:
        model.requires_grad_(False)
    targets = lora.target_modules or _linear_names(blocks)
    found = set()
    for name, layer in list(blocks.named_modules()):
        if (last := name.rpartition(".")[2]) in targets and is_linear(layer):
            found.add(last)
            _adapt(layer, lora)
    if missing := sorted(set(targets) - found):
        known = ", ".join(_linear_names(blocks))
        raise ValueError(f"model.adapter.target_modules: the blocks have no linear layer {missing}; they have {known}")
    return targets


def peft_config(config: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Return the content of PEFT's adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        **{name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    }


def is_adapter(name: str) -> bool:
    """Return whether a weight of this name belongs to an adapter."""
    return f".{_A}." in name or f".{_B}." in name


def check_pairs(where: str, adapter: Mapping[str, torch.Tensor], rank: int) -> None:
    """Check that weights are those of LoRA and nothing else.

    Raises:
        ValueError: A weight is of another kind, has no partner, or has another rank.
    """
    for name, weight in adapter.items():
        mine, partner, axis = (_A, _B, 0) if f".{_A}." in name else (_B, _A, 1)
        if not is_adapter(name):
            raise ValueError(f"{where} holds weights other than those of LoRA: {name}")
        if name.replace(f".{mine}.", f".{partner}.") not in adapter:
            raise ValueError(f"{where} is not whole: {name} has no {partner} beside it")
        if weight.ndim != 2 or weight.shape[axis] != rank:
            shape = tuple(weight.shape)
            raise ValueError(f"{where} is not of the rank that its config says: {name} is {shape}, r is {rank}")


def pairs(adapter: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return the name of each weight that an adapter changes, with its A and its B."""
    for name in adapter:
        if f".{_A}." in name:
            yield name.replace(f".{_A}.", "."), adapter[name], adapter[name.replace(f".{_A}.", f".{_B}.")]


def merged(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, transposed: bool, rows: slice = slice(None)
) -> torch.Tensor:
    """Return rows of a weight with the adapter added, in the weight's own precision.

    Args:
        weight: The rows [rows, in] of W; if transposed, [rows, out].
        a: A [r, in].
        b: B [out, r].
        scale: Factor of their product.
        transposed: Whether W is [in, out].
        rows: Which rows of W these are.

    Raises:
        ValueError: The adapter belongs to a weight of another shape.
    """
    left, right = (a.T, b.T) if transposed else (b, a)
    with torch.autocast(weight.device.type, enabled=False):
        change = left[rows].float() @ right.float() * scale
    if change.shape != weight.shape:
        shapes = f"{tuple(change.shape)}, the weight {tuple(weight.shape)}"
        raise ValueError(f"the adapter is one of another base: its change is {shapes}")
    return (weight.float() + change).to(weight.dtype)


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer can be adapted."""
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Return whether the weight of a layer is [in, out]."""
    return type(layer).__name__ == _TRANSPOSED


def _part(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return whole[rows_of(parameter)]


def _linear_names(blocks: nn.Module) -> list[str]:
    """Return the names of the linear layers of the blocks, relative to their block."""
    return sorted({name.rpartition(".")[2] for name, layer in blocks.named_modules() if is_linear(layer)})


def _adapt(layer: Any, lora: LoRA) -> None:
    """Attach A, B and dropout to a linear layer, whose output they add to."""
    weight: Any = layer.weight
    size_out, size_in = reversed(weight.shape) if is_transposed(layer) else (layer.out_features, layer.in_features)
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    for name, (into, out) in ((_A, (size_in, lora.r)), (_B, (lora.r, size_out))):
        part = nn.Linear(into, out, bias=False, device="meta")  # without a draw from the global random state
        part.weight = nn.Parameter(torch.empty(out, into, device=weight.device, dtype=dtype))
        layer.add_module(name, part)
    layer.add_module("lora_dropout", nn.Dropout(lora.dropout))
    layer.lora_scale = lora.scale
    layer.register_forward_hook(_add)


def _add(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    into = layer.lora_dropout(inputs[0]).to(layer.lora_A.weight.dtype)
    return output + (layer.lora_B(layer.lora_A(into)) * layer.lora_scale).to(output.dtype)
