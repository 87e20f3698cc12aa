"""What the second read of a round's updates takes in memory, before any is read."""

from __future__ import annotations

import sys

from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus_aggregator.columns import needed_bytes
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.update import TensorSpec


def test_manifests_of_many_chunks_are_counted_and_their_chunks_are_not() -> None:
    table = [TensorSpec(name="w", shape=(1000 * CHUNK_ELEMENTS,), dtype="float32")]
    update = AcceptedUpdate(worker="w", attempt="1", digest="0" * 64, seq=1, weight=1.0, bytes=10**9)
    listed = sys.getsizeof("0" * 64) + 8
    one = 4 * CHUNK_ELEMENTS + 1000 * listed
    assert 5000 * one <= needed_bytes(Grid.of(table), [update] * 5000) < 5000 * one * 1.1
