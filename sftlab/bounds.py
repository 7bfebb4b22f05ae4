"""Bounds: the check of a number in a config, with a message that names its key."""

from __future__ import annotations

import math
from typing import Any

_HUGE = 10**12  # anything larger is a typing error, and would not end


def within(key: str, value: Any, least: float, most: float = _HUGE, is_whole: bool = False) -> None:
    """Check that a given value is a finite number within bounds.

    Args:
        key: Its name in a config.
        value: The value.
        least: The smallest valid number.
        most: The largest valid number.
        is_whole: Whether it must be a whole number.

    Raises:
        ValueError: It is not a number within the bounds.
    """
    kind = "whole number" if is_whole else "number"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not _is_finite(value) or (is_whole and value != int(value)):
        raise ValueError(f"{key}: {value!r:.80} is not a {kind}")
    if not least <= value <= most:
        span = f"at least {least:,}" if most == _HUGE and value < least else f"between {least:,} and {most:,}"
        raise ValueError(f"{key}: {value!r} must be {span}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
