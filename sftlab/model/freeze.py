"""Freezing: which weights of a model are not trained, by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from sftlab.nearest import did_you_mean


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all weights whose names match a pattern.

    Args:
        model: A Hugging Face model.
        patterns: Names of parameters or of the modules that hold them, with ``*``, ``?``, ``[0-3]`` as in file names:
            ``model.embed_tokens``, ``model.layers.[0-3]``, ``*.bias``.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head has its own name
    for pattern in patterns:
        found = [name for name in parameters if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not found:
            parts = [name.rpartition(".")[0] for name in parameters]
            some = f"there are {', '.join(list(parameters)[:4])} ..."
            hint = did_you_mean(pattern, [*dict.fromkeys(parts), *parameters], some, cutoff=0.3)
            raise ValueError(f"model.frozen: {pattern!r} matches no weights of the model; {hint}")
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"model.frozen: {', '.join(patterns)} leave nothing to train")
