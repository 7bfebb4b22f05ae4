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
    """Trains low-rank weights beside the linear layers of the blocks; all other weights stay as they are.

    Args:
        r: Rank of the matrices.
        alpha: Their product counts alpha / r.
        dropout: Of what goes into them.
        target_modules: Names of the layers that get them, such as q_proj; by default all linear layers of the blocks.
        stages: What a stage does with the adapter, for all stages or by stage name: ``carried`` goes on with that of
            the stage before; ``merged`` trains it and adds it to the weights when the next stage begins, which starts
            one of its own; ``off`` trains all weights without one.
        quantise: nf4 holds the base in 4 bits while it is frozen (QLoRA, arXiv 2305.14314); needs bitsandbytes and a
            GPU. Not tried on a GPU yet.

    Raises:
        ValueError: An option has no such value.
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
        """Whether some stage changes the weights of the base."""
        return bool({"merged", "off"} & set(self.stages.values() if isinstance(self.stages, dict) else [self.stages]))

    @property
    def trains_base(self) -> bool:
        """Whether some stage trains all weights."""
        return "off" in (self.stages.values() if isinstance(self.stages, dict) else [self.stages])

    @property
    def scale(self) -> float:
        """What the product of the two matrices counts."""
        return self.alpha / self.r

    def mode(self, stage: str) -> StageMode:
        """What a stage does with the adapter."""
        return self.stages.get(stage, "carried") if isinstance(self.stages, dict) else self.stages

    def check(self, stages: Sequence[str]) -> None:
        """Look whether the stages that are named are there.

        Raises:
            ValueError: One is not.
        """
        unknown = sorted(set(self.stages) - set(stages)) if isinstance(self.stages, dict) else []
        if unknown:
            raise ValueError(f"model.adapter.stages: no stage named {unknown}; the stages are {list(stages)}")

    def settings(self) -> dict[str, Any]:
        """What determines the weights beside the modes of stages, which each stage's key has for itself."""
        return {name: value for name, value in vars(self).items() if name != "stages"}

    def begins(self, before: str | None, stage: str) -> bool:
        """Whether a stage starts an adapter of its own, after the one of the stage before has joined the weights."""
        if before is None or self.mode(before) == "off":
            return False
        return self.mode(before) == "merged" or self.mode(stage) == "off"

    def key(self, before: str | None, stage: str) -> list[bool]:
        """What of the modes determines a stage's weights, given those that it starts from."""
        return [self.begins(before, stage), self.mode(stage) == "off"]


class LiveAdapter:
    """The adapter of a model in training.

    Args:
        lora: What is wanted.
        model: A causal LM, whole on this process; it is given its adapter here.
        blocks: The repeated blocks of the model.
        seed: Of the random matrices.
        base: Hash of the weights of the base where they can be loaded again; empty where they are random.

    Attributes:
        is_base_changed: The weights of the base are not those that were loaded any more.

    Raises:
        ValueError: No layer has one of the names that are wanted.
    """

    def __init__(self, lora: LoRA, model: PreTrainedModel, blocks: nn.Module, seed: int, base: str) -> None:
        self.lora, self.base, self.is_base_changed = lora, base, False
        self._model, self._seed = model, seed
        self.targets = attach(lora, model, blocks)
        self.start("")

    def layers(self) -> Iterator[tuple[str, Any]]:
        """The layers that have an adapter, by name."""
        return ((name, layer) for name, layer in self._model.named_modules() if hasattr(layer, _A))

    @torch.no_grad()
    def start(self, stage: str) -> None:
        """A fresh adapter: B is zero, A uniform as ``nn.Linear`` starts; the same however many processes there are."""
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
        """What is to be done before the first step of a stage; whether it starts an adapter of its own."""
        name = stage.stage.name
        begins = self.lora.begins(before.stage.name if before is not None else None, name)
        if begins:
            self.merge()
            self.start(name)
        self.is_base_changed |= self.lora.mode(name) == "off"
        return begins

    def drop_gradients(self, stage: StagePlan) -> None:
        """Forget gradients of weights that a stage does not train."""
        if not self.lora.trains_base:
            return
        is_off = self.lora.mode(stage.stage.name) == "off"
        for name, parameter in self._model.named_parameters():
            if is_adapter(name) == is_off:
                parameter.grad = None

    @property
    def is_apart(self) -> bool:
        """Whether base and adapter are what the base on the disk and the adapter are together."""
        return bool(self.base) and not self.is_base_changed

    def is_kept(self, name: str) -> bool:
        """Whether a checkpoint holds the weight of this name: those of a base that can be loaded again it does not."""
        return is_adapter(name) or not self.is_apart

    def note(self) -> dict[str, Any]:
        """What a checkpoint says of the adapter beside its weights."""
        return {"base": self.base, "is_base_changed": self.is_base_changed, **self.config()}

    def config(self) -> dict[str, Any]:
        """What turns the weights of the adapter into a change of the base, in PEFT's words."""
        lora = self.lora
        return {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": self.targets}


def attach(lora: LoRA, model: PreTrainedModel, blocks: nn.Module) -> list[str]:
    """Put an adapter beside the linear layers of the blocks; the names of these layers.

    Raises:
        ValueError: No layer has one of the names that are wanted.
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
    """The adapter_config.json of an adapter of ours."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        **{name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    }


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return f".{_A}." in name or f".{_B}." in name


def pairs(adapter: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The name of each weight that an adapter changes, its A and its B."""
    for name in adapter:
        if f".{_A}." in name:
            yield name.replace(f".{_A}.", "."), adapter[name], adapter[name.replace(f".{_A}.", f".{_B}.")]


def merged(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, transposed: bool, rows: slice = slice(None)
) -> torch.Tensor:
    """Some rows of a weight with the adapter added, in the weight's own precision.

    Args:
        weight: The rows [rows, in] of W; of a transposed one [rows, out].
        a: A [r, in].
        b: B [out, r].
        scale: What their product counts.
        transposed: W is [in, out].
        rows: Which rows of W these are.
    """
    left, right = (a.T, b.T) if transposed else (b, a)
    with torch.autocast(weight.device.type, enabled=False):
        change = left[rows].float() @ right.float() * scale
    return (weight.float() + change).to(weight.dtype)


def is_linear(layer: nn.Module) -> bool:
    """Whether an adapter can stand beside a layer."""
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight of a layer is [in, out]."""
    return type(layer).__name__ == _TRANSPOSED


def _part(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return whole[rows_of(parameter)]


def _linear_names(blocks: nn.Module) -> list[str]:
    """Names of the linear layers of the blocks, without where they stand."""
    return sorted({name.rpartition(".")[2] for name, layer in blocks.named_modules() if is_linear(layer)})


def _adapt(layer: Any, lora: LoRA) -> None:
    """Put A, B and dropout beside a linear layer, whose output they add to."""
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
