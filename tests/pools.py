"""Pools for tests of plans: examples of which uids and lengths are told, ranked as those of an ability are."""

from collections.abc import Sequence

import numpy as np

from sftlab.plan.pool import Pool, rank
from sftlab.plan.uids import Uids


def ranked(
    ability: str,
    uids: Sequence[str],
    lengths_N: np.ndarray,
    supervised_N: np.ndarray,
    seed: int = 0,
    losses_N: np.ndarray | None = None,
) -> Pool:
    """A pool of these examples."""
    uids_N = Uids.of(uids)
    order_N = rank(ability, uids_N, seed)
    sizes = (np.asarray(sizes_N, dtype=np.int32)[order_N] for sizes_N in (lengths_N, supervised_N))
    losses_N = None if losses_N is None else np.asarray(losses_N, dtype=np.float64)[order_N]
    return Pool(ability, order_N, uids_N[order_N], *sizes, population=len(uids), losses_N=losses_N)
