"""What a codec does to given values: how much smaller they get, and how much is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbus.codec import Codec, Vector


@dataclass(frozen=True, slots=True)
class Measured:
    """`ratio`: times fewer bytes than float32. `nmse`: |x - decoded|^2 / |x|^2."""

    ratio: float
    nmse: float


def measure(codec: Codec, x: Vector) -> Measured:
    """Encode and decode finite values, and compare.

    Args:
        codec: any.
        x: values; where all are zero, nothing is lost.
    """
    body, blosc = codec.encode(x)
    got = np.empty_like(x)
    codec.decode(memoryview(body), blosc, got)
    size = float(np.square(x, dtype=np.float64).sum())
    lost = float(np.square(np.subtract(x, got, dtype=np.float64)).sum())
    return Measured(x.nbytes / max(1, len(body)), lost / size if size else 0.0)
