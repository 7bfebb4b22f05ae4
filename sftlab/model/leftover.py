"""Reports weights in a model's files that its architecture does not use.

Examples are layers beyond a smaller ``num_hidden_layers``, heads of another task, weights of another kind of model: the
loaded model is then not that of the files. Transformers lists them in a table in its log.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sftlab.processes import is_follower
from sftlab.screen import complain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOADER = "transformers.modeling_utils"
_LAYER = re.compile(r"(.*?(?:^|\.)(?:layers|h|blocks)\.\d+)\.")
_MOST_NAMES = 4


def tell_leftover(path: str, names: Iterable[str]) -> None:
    """Print which weights of a model's files are not used; once per process, on a run's first rank."""
    if (found := tuple(sorted(set(names)))) and not is_follower():
        _tell(path, found)


@functools.cache
def _tell(path: str, names: tuple[str, ...]) -> None:
    layers = [match[1] if (match := _LAYER.match(name)) else name for name in names]
    # Split into words and numbers: layer 10 comes after layer 9.
    shown = sorted(set(layers), key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    rest = f" and {len(shown) - _MOST_NAMES:,} more" if len(shown) > _MOST_NAMES else ""
    hint = "; does num_hidden_layers in its config.json leave layers out?" if layers != list(names) else ""
    complain(
        f"Note: model.path: {path!r} holds {len(names):,} weights that its architecture has no place for; they are not "
        f"used, and nothing that is exported has them: {', '.join(shown[:_MOST_NAMES])}{rest}{hint}"
    )


def unplaced(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the ``names`` that an architecture does not use, except those that it declares as unused."""
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    dropped = [rf"(^|\.){name}$" for name in ("inv_freq", "position_ids") if name in buffers]
    dropped += list(model._keys_to_ignore_on_load_unexpected or ())
    known = model.state_dict()
    return [name for name in names if name not in known and not any(re.search(one, name) for one in dropped)]


@contextmanager
def without_table() -> Iterator[None]:
    """Suppress transformers' table while a model is loaded; its content is reported here."""

    def is_said_elsewhere(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger(_LOADER)
    logger.addFilter(is_said_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(is_said_elsewhere)
