"""The sum says of what it was made: an update that was added in part is none of it."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus.codec import Vector
from fedbus.strategies.fedavg import FedAvg
from fedbus_aggregator.sums import Sum
from fedbus_schemas.update import TensorSpec

TABLE = [TensorSpec(name="w", shape=(1000,), dtype="float32")]


class Failing(FedAvg):
    """Adds what it is given, and then fails, once it is told to."""

    fails = False

    def add(self, offset: int, values: Vector, weight: float) -> None:
        super().add(offset, values, weight)
        if self.fails:
            raise MemoryError


async def test_what_was_added_in_part_is_begun_anew() -> None:
    strategy = Failing()
    total = Sum(strategy)
    await total.start(TABLE)
    await total.add("a", np.ones(1000, np.float32), 1.0)
    strategy.fails = True
    with pytest.raises(MemoryError):
        await total.add("b", np.ones(1000, np.float32), 1.0)
    assert not total.begins(["a", "b"])
    assert total.lacks(["a", "b"]) == 2
    strategy.fails = False
    await total.start(TABLE)
    assert total.lacks(["a", "b"]) == 2
    for key in ("a", "b"):
        await total.add(key, np.ones(1000, np.float32), 1.0)
    assert total.begins(["a", "b"])
    assert total.lacks(["a", "b"]) == 0
