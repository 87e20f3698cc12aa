"""Models on the broker: small ones are one message, large ones a manifest and chunks, liars are refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused, DigestMismatch, RemoteContractError
from fedbus.bus import Bus
from fedbus.bus.models import PublishedModel, load_values, publish_model, read_manifest
from fedbus.bus.store import list_subjects, put
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus_schemas import subjects
from fedbus_schemas.update import ModelManifest, TensorSpec
from support.buses import parties
from support.natsd import Stack

FRAMING = Framing("dense")


def table(size: int) -> list[TensorSpec]:
    return [TensorSpec(name="w", shape=[size], dtype="float32", group="lossy")]


async def encoded(values: Vector) -> AsyncGenerator[bytes]:
    for span in Grid.of(table(len(values))).spans:
        yield FRAMING.encode(span, values[span.offset : span.end])


async def publish(bus: Bus, values: Vector) -> PublishedModel:
    return await publish_model(
        bus,
        encoded(values),
        run="model",
        round=1,
        parent=None,
        codec="dense",
        table=table(len(values)),
    )


@pytest.mark.parametrize(("size", "messages"), [(1000, 1), (258_048, 1), (258_049, 3)])
async def test_what_is_published_is_read(stack: Stack, size: int, messages: int) -> None:
    values = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    async with parties(stack, "aggregator", "w-model") as (aggregator, worker):
        before = await list_subjects(aggregator, subjects.MODELS, "fb.model.>")
        made = await publish(aggregator, values)
        stored = (await list_subjects(aggregator, subjects.MODELS, "fb.model.>")).keys() - before.keys()
        assert len(stored) == messages
        found = await read_manifest(worker, made.digest)
        assert found.model_copy(update={"body": None}) == made.manifest
        np.testing.assert_array_equal(await load_values(worker, found), values)
        assert (found.body is None) == (messages > 1)
        assert made.wire_bytes == len(found.pack()) + (found.size_bytes if messages > 1 else 0)


async def stored(bus: Bus, manifest: ModelManifest) -> ModelManifest:
    await put(bus, subjects.model_manifest(manifest.digest()), manifest.pack())
    return await read_manifest(bus, manifest.digest())


async def test_a_body_that_lies_is_refused(stack: Stack) -> None:
    async with parties(stack, "aggregator") as (aggregator,):
        small = (await publish(aggregator, np.ones(1000, np.float32))).manifest
        large = (await publish(aggregator, np.ones(300_000, np.float32))).manifest
        with pytest.raises(RemoteContractError, match="a body beside several chunks"):
            await stored(aggregator, large.model_copy(update={"body": b"x"}))
        other = small.model_copy(update={"body": b"x" * 100})
        with pytest.raises(DigestMismatch, match="SHA-256"):
            await load_values(aggregator, await stored(aggregator, other))
        # The digest is right, the length is not.
        (span,) = Grid.of(table(999)).spans
        short = FRAMING.encode(span, np.ones(999, np.float32))
        lying = small.model_copy(update={"body": short, "chunks": [chunk_digest(short)]})
        with pytest.raises(ChunkRefused, match="999 elements"):
            await load_values(aggregator, await stored(aggregator, lying))
