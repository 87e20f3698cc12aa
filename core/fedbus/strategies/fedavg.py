"""FedAvg: the example-weighted mean (McMahan et al., 2017)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fedbus.strategies import Vector, strategies


@strategies.register
class FedAvg:
    """Sum of weight * update over the sum of weights, in float32 and in place."""

    name: ClassVar[str] = "fedavg"

    def __init__(self) -> None:
        self._sum: Vector = np.zeros(0, np.float32)
        self._weight = 0.0

    def start(self, size: int) -> None:
        """Begin a round; the sum of an earlier one is reused when it fits."""
        if self._sum.size == size:
            self._sum.fill(0.0)
        else:
            self._sum = np.zeros(size, np.float32)
        self._weight = 0.0

    def add(self, offset: int, x: Vector, weight: float) -> None:
        """Add weight * x; x is scaled in place, so that no temporary is needed."""
        np.multiply(x, np.float32(weight), out=x)
        self._sum[offset : offset + x.size] += x

    def counted(self, weight: float) -> None:
        """Note an update's weight."""
        self._weight += weight

    def finish(self, offset: int, out: Vector) -> None:
        """Write the mean for one span.

        Raises:
            ZeroDivisionError: no update was added.
        """
        np.multiply(self._sum[offset : offset + out.size], np.float32(1.0 / self._weight), out=out)
