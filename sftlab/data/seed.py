"""The seed that ``seed_everything`` was told."""

from __future__ import annotations

import os


def global_seed() -> int:
    """What ``seed_everything`` was last told, where Lightning itself keeps it; 0 if it never was.

    Raises:
        ValueError: Somebody else has put something there that is not a seed.
    """
    kept = os.environ.get("PL_GLOBAL_SEED", "0")
    if not kept.isdecimal():
        raise ValueError(f"the environment variable PL_GLOBAL_SEED: {kept!r} is not a seed, a whole number from 0 on")
    return int(kept)
