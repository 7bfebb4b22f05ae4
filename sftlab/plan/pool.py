"""The examples of one ability as a plan sees them: uids and lengths, in an order that depends on uids and seed only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sftlab.plan.uids import Uids, index_type

Unit = Literal["examples", "tokens", "supervised_tokens"]


def seed_from(*names: object) -> int:
    """Return a 64-bit seed that depends only on the names, never on positions in a list."""
    text = "\x1f".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rank(ability: str, uids_N: Uids, seed: int) -> np.ndarray:
    """Return the order [N] of examples by a hash of their uids, keyed by ``seed`` and the ability's name."""
    return uids_N.order_by_hash(seed_from("rank", ability, seed).to_bytes(8, "little"))


@dataclass(frozen=True, eq=False)
class Pool:
    """The ranked examples of one ability. Every subset is a prefix, so subsets are nested.

    Attributes:
        ability: Name of the ability.
        index_N: Position of each example in its source (an ``Examples`` table).
        uids_N: Content hash of each example.
        lengths_N: Tokens of each example.
        supervised_N: Supervised tokens of each example.
        population: Number of examples before any fraction was taken.
        declared: Whether only the number of examples is known; lengths are then placeholders of 1.
        losses_N: The base's mean loss per supervised token of each example, if a curriculum needs it.
    """

    ability: str
    index_N: np.ndarray
    uids_N: Uids
    lengths_N: np.ndarray
    supervised_N: np.ndarray
    population: int
    declared: bool = False
    losses_N: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.index_N)

    @classmethod
    def from_count(cls, ability: str, num_examples: int) -> Pool:
        """Create a pool of which only the size is known; it can be planned but not trained."""
        index_N = np.arange(num_examples, dtype=index_type(num_examples))
        numbers_N = index_N.astype(f"S{len(str(num_examples))}")
        uids_N = Uids([np.char.add(f"{ability}#".encode(), numbers_N)])
        ones_N = np.ones(num_examples, dtype=np.int32)
        return cls(ability, index_N, uids_N, ones_N, ones_N, population=num_examples, declared=True)

    def first(self, count: int) -> Pool:
        """Return the first ``count`` examples in rank."""
        return replace(
            self,
            index_N=self.index_N[:count],
            uids_N=self.uids_N[:count],
            lengths_N=self.lengths_N[:count],
            supervised_N=self.supervised_N[:count],
            losses_N=None if self.losses_N is None else self.losses_N[:count],
        )

    def fraction(self, fraction: float, counted_in: Unit = "examples") -> Pool:
        """Return the first floor(fraction x N) examples, so that the 1/256 subset lies inside the 1/64 subset.

        Counted in tokens or supervised tokens, as many of the first examples as have at most that fraction of them.

        Raises:
            ValueError: The fraction is not in [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"ability {self.ability!r}: a fraction lies between 0 and 1, not {fraction}")
        if counted_in != "examples":
            target = fraction * self.total(counted_in) + 1e-6
            return self.first(int(np.searchsorted(np.cumsum(self.sizes_N(counted_in)), target, side="right")))
        # 0.29 x 100 is 28.999999999999996 in binary; the tolerance gives the intended 29.
        return self.first(math.floor(fraction * len(self) + 1e-9))

    def sizes_N(self, unit: Unit) -> np.ndarray:
        """Return the size of each example: 1, its tokens or its supervised tokens."""
        if unit == "examples":
            return np.ones(len(self), dtype=np.int64)
        return self.lengths_N if unit == "tokens" else self.supervised_N

    def total(self, unit: Unit) -> int:
        """Return the size of the whole pool, counted in ``unit``."""
        return int(self.sizes_N(unit).sum())
