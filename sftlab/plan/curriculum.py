"""Curricula: the order in which a stage trains its examples; they never change which examples are trained.

    shuffled       at random
    short_first    by tokens, short to long          long_first    the other way round
    easy_first     by the loss of the base, low to high            hard_first    the other way round
    blocked        one ability after another, as the stage names them
    interleaved    the abilities spread evenly: a b a c a b a ...

Each pass over the mixture is ordered on its own; ties stay shuffled.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Curriculum = Literal["shuffled", "short_first", "long_first", "easy_first", "hard_first", "blocked", "interleaved"]
BY_LOSS = ("easy_first", "hard_first")


def check_curriculum(place: str, curriculum: str) -> None:
    """Check that a curriculum is known.

    Raises:
        ValueError: It is not known.
    """
    if curriculum not in get_args(Curriculum):
        raise ValueError(f"{place}curriculum: {curriculum!r} is not one of {', '.join(get_args(Curriculum))}")


def in_order(
    example_E: np.ndarray,
    curriculum: Curriculum,
    lengths_E: np.ndarray,
    losses_E: np.ndarray | None,
    ranks_E: np.ndarray,
) -> np.ndarray:
    """Order shuffled examples by a curriculum.

    Args:
        example_E: Numbers of examples, shuffled.
        curriculum: The order.
        lengths_E: Tokens of each.
        losses_E: The base's mean loss per supervised token of each; needed only for orders by loss.
        ranks_E: Position of each one's ability in the order of the blocks.
    """
    if curriculum == "shuffled":
        return example_E
    if curriculum in BY_LOSS:
        assert losses_E is not None, "whoever compiles such a stage measures the base first"
        key_E = losses_E if curriculum == "easy_first" else -losses_E
    elif curriculum == "blocked":
        key_E = ranks_E
    elif curriculum == "interleaved":
        key_E = _evenly(ranks_E)
    else:
        key_E = lengths_E if curriculum == "short_first" else -lengths_E
    return example_E[np.argsort(key_E, kind="stable")]


def _evenly(ranks_E: np.ndarray) -> np.ndarray:
    """Return positions from 0 to 1 that space the examples of every ability evenly."""
    place_E = np.empty(len(ranks_E))
    for rank in np.unique(ranks_E):
        mine = np.flatnonzero(ranks_E == rank)
        place_E[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return place_E
