"""The seed set by ``seed_everything``."""

from __future__ import annotations

import os


def global_seed() -> int:
    """Return the seed last given to ``seed_everything``, where Lightning keeps it; 0 if there was none.

    Raises:
        ValueError: The environment variable holds something that is not a seed.
    """
    kept = os.environ.get("PL_GLOBAL_SEED", "0")
    if not kept.isdecimal():
        raise ValueError(f"the environment variable PL_GLOBAL_SEED: {kept!r} is not a seed, a whole number from 0 on")
    return int(kept)
