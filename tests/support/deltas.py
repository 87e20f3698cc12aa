"""Models that travel as differences, published by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
from fedbus.bus import Bus
from fedbus.bus.models import publish_model, read_manifest
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.delta import add_delta, values_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus_schemas.update import ModelManifest, TensorSpec

EXACT = 40  # elements at the end that travel exactly


def table_of(size: int, exact: int = EXACT) -> list[TensorSpec]:
    """Tensors of a vector of that size."""
    table = [TensorSpec(name="w", shape=(size - exact,), dtype="float32")]
    if exact:
        table.append(TensorSpec(name="mean", shape=(exact,), dtype="float32", group="exact"))
    return table


class Published:
    """A model on the bus, and its values."""

    def __init__(self, manifest: ModelManifest, values: Vector) -> None:
        self.manifest = manifest
        self.values = values
        self.digest = manifest.digest()


async def publish_whole(bus: Bus, values: Vector, run: str, *, exact: int = EXACT) -> Published:
    """Publish a model whole, as round 0's."""
    table, framing = table_of(len(values), exact), Framing("dense")

    async def chunks() -> AsyncIterator[bytes]:
        for span in Grid.of(table).spans:
            yield framing.encode(span, values[span.offset : span.end])

    made = await publish_model(bus, chunks(), run=run, round=0, parent=None, codec="dense", table=table)
    return Published(await read_manifest(bus, made.digest), values)


async def publish_delta(bus: Bus, parent: Published, wanted: Vector, codec: str = "ecq") -> Published:
    """Publish a model near to what is wanted as a difference to another."""
    table, framing = parent.manifest.table, Framing(codec)
    out, scratch = parent.values.copy(), np.empty(len(wanted), np.float32)
    digests: list[str] = []

    async def chunks() -> AsyncIterator[bytes]:
        for span in Grid.of(table).spans:
            values = out[span.offset : span.end]
            goal = wanted[span.offset : span.end]
            data = framing.encode(span, goal if span.group == "exact" else goal - values)
            add_delta(framing, data, chunk_digest(data), span, values, scratch)
            digests.append(values_digest(values))
            yield data

    made = await publish_model(
        bus,
        chunks(),
        run=parent.manifest.run,
        round=parent.manifest.round + 1,
        parent=parent.digest,
        codec=codec,
        table=table,
        values=digests,
    )
    return Published(await read_manifest(bus, made.digest), out)


async def publish_chain(bus: Bus, run: str, size: int, length: int) -> list[Published]:
    """A whole model and so many differences, each to the one before; a small one is one message."""
    models = [await publish_whole(bus, _normal(0, size), run, exact=EXACT if size > 1000 else 0)]
    for seed in range(1, length + 1):
        models.append(await publish_delta(bus, models[-1], models[-1].values + _normal(seed, size) / 8))
    return models


def _normal(seed: int, size: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
