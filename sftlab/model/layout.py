"""How the weights of a model map to those in its Hugging Face files, a few at a time.

tied weights      stand under one of their names, the one that the architecture loads
an adapter        is added: W + (alpha / r) B A
joined weights    of experts, which transformers joins while it loads, are taken apart again, a layer at a time
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from sftlab.model.adapter import is_adapter, is_transposed, merged, pairs
from sftlab.model.weights import WeightFiles, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Take = Callable[[str], torch.Tensor]


class Layout:
    """The weight files of a model.

    Args:
        model: The architecture, on the device ``meta``.
        shapes: The given weights, by their names in the model, including those of an adapter.
        adapter: The checkpoint's note on its adapter.

    Attributes:
        is_joined: Whether the files have other weights than the model.

    Raises:
        ValueError: The weights do not match the architecture.
    """

    def __init__(
        self, model: PreTrainedModel, shapes: Mapping[str, torch.Tensor], adapter: Mapping[str, Any] | None = None
    ) -> None:
        self._model, self._adapter = model, adapter
        self._changed = {name: _partners(name) for name, _, _ in pairs(shapes)}
        whole = {name: shape for name, shape in shapes.items() if not is_adapter(name)}
        self._source = _sources(model, whole)
        in_model = {name: whole[source] for name, source in self._source.items()}
        in_files = revert_weight_conversion(model, dict(in_model))
        self.is_joined = not all(in_files.get(name) is shape for name, shape in in_model.items())
        self._units = _by_layer(in_model) if self.is_joined else [[name] for name in in_model]
        self._shapes = in_files

    def write(self, folder: Path, take: Take) -> None:
        """Write the files, and an index if there are several.

        Args:
            folder: The target folder.
            take: Returns the weight of a name; called once for each.
        """
        files = WeightFiles(folder, self._shapes, metadata={"format": "pt"})
        for unit in self._units:
            tensors = {name: self._whole(name, take) for name in unit}
            made = revert_weight_conversion(self._model, tensors) if self.is_joined else tensors
            for name, tensor in made.items():
                files.write(name, tensor)
        files.close()

    def _whole(self, name: str, take: Take) -> torch.Tensor:
        source = self._source[name]
        weight = take(source)
        if source not in self._changed:
            return weight
        assert self._adapter is not None
        a, b = (take(partner) for partner in self._changed[source])
        transposed = is_transposed(self._model.get_submodule(source.rpartition(".")[0]))
        return merged(weight, a, b, self._adapter["lora_alpha"] / self._adapter["r"], transposed)


def _partners(name: str) -> tuple[str, str]:
    layer, _, last = name.rpartition(".")
    return f"{layer}.lora_A.{last}", f"{layer}.lora_B.{last}"


def _sources(model: PreTrainedModel, given: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the given weight for each weight in the files; tied weights may be given under any of their names.

    Raises:
        ValueError: Weights are missing or unknown, or have other shapes.
    """
    named: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    held = [name for name in model.state_dict() if name in named]
    alike: dict[int, list[str]] = {}
    for name in held:
        alike.setdefault(id(named[name]), []).append(name)
    tied, ignored = getattr(model, "all_tied_weights_keys", {}), model._keys_to_ignore_on_save or ()
    found, missing = {}, []
    for names in alike.values():
        kept = next((name for name in names if name not in tied), names[-1])
        source = next((name for name in (kept, *names) if name in given), None)
        if source is None:
            missing.append(kept)
        elif kept not in ignored:
            found[kept] = source
    unknown = [name for name in given if name not in named]
    if missing or unknown:
        raise ValueError(f"export: weights missing: {missing[:3]}, unknown: {unknown[:3]}")
    for name, source in found.items():
        if given[source].shape != named[name].shape:
            was, wanted = (tuple(one.shape) for one in (given[source], named[name]))
            raise ValueError(f"export: {name} has the shape {was}, the architecture {wanted}")
    return {name: found[name] for name in held if name in found}


def has_heads_of_its_own(model: PreTrainedModel, weights: Weights) -> bool:
    """Return whether files hold a weight that the architecture ties, with other values than its partner."""
    tied, held = model.all_tied_weights_keys, weights.shapes
    pairs_held = [(name, source) for name, source in tied.items() if name in held and source in held]
    return any(not torch.equal(weights.take(name), weights.take(source)) for name, source in pairs_held)


def _by_layer(names: Iterable[str]) -> list[list[str]]:
    """Group names by layer; others are alone."""
    units: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r".*?\.\d+\.", name)
        units.setdefault(match[0] if match else name, []).append(name)
    return list(units.values())


def of_base(base: Weights, adapter: Weights, known: Iterable[str]) -> Weights:
    """Return the weights of a base that a model knows, in fp32, and those of an adapter."""
    wanted = set(known)
    full = base.renamed(lambda name: name if name in wanted else None).to(torch.float32)
    shapes = {**full.shapes, **adapter.shapes}
    return Weights(shapes, lambda name: (adapter if name in adapter.shapes else full).take(name))
