"""torch.compile of a model's layers, one at a time, so that rows of all lengths share few graphs.

Each layer is compiled in place: weights keep their names, and code that wraps, exports or saves the model sees no
difference. The length of a row is a symbol in the graph; rows are padded at their end to a multiple of
``ROW_MULTIPLE``, so that kernels which depend on the alignment of a row need no graphs of their own. Random numbers are
drawn as without compiling, but a padded row draws more of them: dropout drops other values than without compiling.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sftlab.model.attention import PER_DOCUMENT
from sftlab.model.loss import SupervisedLoss

ROW_MULTIPLE = 64  # tokens
_BY_EXAMPLE = (PER_DOCUMENT, "flash_attention_2")  # attentions whose tensor shapes depend on the lengths of examples
_BACKEND: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
_MOST_GRAPHS = 64  # graphs per layer: one row or several, with a mask or without, training or not, each kind of layer


def check_attention(name: str) -> None:
    """Check that an attention works with compiled layers.

    Raises:
        ValueError: Each combination of example lengths would need its own graph.
    """
    if name in _BY_EXAMPLE:
        raise ValueError(
            f"model.compile: does not go with model.attention: {name}, whose shapes are the lengths of the examples of "
            "a row: each row would be compiled anew. Set attention to auto or sdpa, or leave compile out"
        )


def compilable(attentions: Iterable[str]) -> list[str]:
    """Return the attentions that work with compiled layers."""
    return [name for name in attentions if name not in _BY_EXAMPLE]


def compile_layers(net: SupervisedLoss, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each layer in place when it first runs, and pad rows.

    Args:
        net: The loss with the model.
        layers: The repeated blocks of the model.
        device: The device of the model.

    Raises:
        ValueError: This machine cannot compile.
    """
    _check_machine(device)
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    net.row_multiple = ROW_MULTIPLE
    for layer in layers:
        layer.compile(dynamic=True, **_BACKEND)


def _check_machine(device: torch.device) -> None:
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
            return
        except exc.InvalidCxxCompiler:
            missing = "a C++ compiler (g++; or name yours in CXX)"
    else:
        from torch.utils._triton import has_triton

        if has_triton() and any(map(shutil.which, ("cc", "gcc", "clang"))):
            return
        missing = "triton and a C compiler (gcc)"
    raise ValueError(f"model.compile: compiling needs {missing}, which is not here; install it, or leave compile out")
