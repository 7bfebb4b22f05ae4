"""The small part of numpy that EvalPlus' tests use, for a sandbox that only has the standard library.

This file's source is prepended to such tests, so it imports only the standard library. A comparison that numpy would
broadcast over sequences of unequal lengths fails here, as it does in EvalPlus' own harness.
"""

import math
import sys
import types
from typing import Any


def allclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Return whether numbers, or nested sequences of them, are equal up to atol + rtol x |b|.

    Raises:
        TypeError: Something is not a number.
        ValueError: Sequences have unequal lengths.
    """
    if isinstance(a, list | tuple) or isinstance(b, list | tuple):
        first = a if isinstance(a, list | tuple) else [a] * len(b)
        second = b if isinstance(b, list | tuple) else [b] * len(a)
        if len(first) != len(second):
            raise ValueError(f"{len(first)} items and {len(second)}")
        return all([allclose(x, y, rtol, atol, equal_nan) for x, y in zip(first, second, strict=True)])
    for value in (a, b):
        if not isinstance(value, int | float | complex):
            raise TypeError(f"{type(value).__name__} is not a number")
    if a == b:
        return True
    if a != a or b != b:
        return equal_nan and a != a and b != b
    return not math.isinf(abs(a)) and not math.isinf(abs(b)) and abs(a - b) <= atol + rtol * abs(b)


def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-07, atol: float = 0, equal_nan: bool = True) -> None:
    """Like ``allclose``, with numpy.testing's tolerances.

    Raises:
        AssertionError: They differ.
    """
    if not allclose(actual, desired, rtol, atol, equal_nan):
        raise AssertionError(f"{actual!r:.80} is not close to {desired!r:.80}")


class ndarray:
    """A class without instances."""


def install() -> None:
    """Make this module what ``import numpy`` finds in this process."""
    module, testing = types.ModuleType("numpy"), types.ModuleType("numpy.testing")
    names = {"allclose": allclose, "ndarray": ndarray, "float64": float, "float32": float, "testing": testing}
    vars(module).update(names)
    vars(testing)["assert_allclose"] = assert_allclose
    sys.modules.update({"numpy": module, "numpy.testing": testing})
