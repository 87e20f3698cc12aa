"""Models on the bus: a manifest named by its digest, chunks named by theirs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import numpy as np
from fedbus_schemas import subjects
from fedbus_schemas.update import ModelManifest

from fedbus.base.errors import DigestMismatch, RemoteContractError
from fedbus.bus.connection import Bus
from fedbus.bus.store import get, get_all
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span


async def read_manifest(bus: Bus, digest: str) -> ModelManifest:
    """The manifest of a model.

    Raises:
        StreamMissing: no such model.
        DigestMismatch: the stored bytes are not the ones that the digest names.
        RemoteContractError: they are, and they are no manifest.
    """
    data = (await get(bus, subjects.MODELS, subjects.model_manifest(digest))).data
    if hashlib.sha256(data).hexdigest() != digest:
        raise DigestMismatch(f"stored manifest of model {digest[:12]} has another digest")
    try:
        manifest = ModelManifest.unpack(data)
    except ValueError as error:
        raise RemoteContractError(f"manifest of model {digest[:12]} is unreadable: {error}") from error
    if len(manifest.chunks) != len(Grid.of(manifest.table).spans):
        raise RemoteContractError(f"manifest of model {digest[:12]} has chunks that do not fit its tensors")
    return manifest


async def read_spans(
    bus: Bus, manifest: ModelManifest, place: Callable[[Span], Vector]
) -> AsyncGenerator[tuple[Span, Vector]]:
    """A model's spans one after the other.

    Args:
        bus: the connection.
        manifest: of the model.
        place: where to decode a span: a float32 vector of its length.
    """
    framing = Framing(manifest.codec)
    names = [subjects.model_chunk(digest) for digest in manifest.chunks]
    spans = Grid.of(manifest.table).spans
    async with aclosing(get_all(bus, subjects.MODELS, names)) as chunks:
        for span, digest in zip(spans, manifest.chunks, strict=True):
            out = place(span)
            await apart(out.nbytes, framing.decode, await anext(chunks), digest, span, out)
            yield span, out


async def load_model(
    bus: Bus, manifest: ModelManifest, out: Vector, on_progress: Callable[[float], None] | None = None
) -> None:
    """Download a model into a flat float32 vector of its grid's size."""
    async with aclosing(read_spans(bus, manifest, lambda span: out[span.offset : span.end])) as spans:
        async for span, _ in spans:
            if on_progress:
                on_progress(span.end / out.size)


async def load_values(bus: Bus, manifest: ModelManifest) -> Vector:
    """A whole model in memory: one flat float32 vector in wire order."""
    values = np.empty(Grid.of(manifest.table).size, np.float32)
    await load_model(bus, manifest, values)
    return values
