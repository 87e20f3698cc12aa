"""How large the values of a chunk are, over all of float32's range."""

from __future__ import annotations

import math

import numpy as np

from fedbus.codec import Vector

# A chunk whose largest magnitude is less counts as zero: the inverse of a scale would be infinite.
SMALLEST = 1e-30
# Between these the squares of a whole chunk add up in float32.
_LEAST, _MOST = 1e-15, 1e15


def peak(x: Vector) -> float:
    """The largest magnitude; NaN or infinity where one is in `x`."""
    return float(np.maximum(x.max(), -x.min()))


def rms(x: Vector, largest: float) -> float:
    """The root of the mean square.

    Args:
        x: finite values.
        largest: their `peak`.
    """
    if _LEAST < largest < _MOST:
        return math.sqrt(float(np.dot(x, x)) / len(x))
    return math.sqrt(float(np.square(x, dtype=np.float64).mean()))
