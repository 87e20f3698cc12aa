"""Models on the bus: a manifest named by its digest, chunks named by theirs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing

import numpy as np
from fedbus_schemas import subjects
from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus.base.errors import DigestMismatch, RemoteContractError
from fedbus.bus.connection import Bus
from fedbus.bus.store import Publisher, get, get_chunks
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
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
    if manifest.body is not None and len(manifest.chunks) != 1:
        raise RemoteContractError(f"manifest of model {digest[:12]} has a body beside several chunks")
    return manifest


async def publish_model(
    bus: Bus,
    chunks: AsyncIterable[bytes],
    *,
    run: str,
    round: int,
    parent: str | None,
    codec: str,
    table: list[TensorSpec],
) -> tuple[ModelManifest, int]:
    """Store a model; its manifest comes last. A single chunk rides in the manifest, where that fits.

    Args:
        bus: the connection.
        chunks: encoded, one for each span of the table's grid, in order.
        run: in which it was made.
        round: in which it was made.
        parent: digest of the model it was made from.
        codec: of the chunks.
        table: its tensors, in wire order.

    Returns:
        The manifest, and the bytes on the wire.
    """
    publisher, alone = Publisher(bus), len(Grid.of(table).spans) == 1
    digests: list[str] = []
    sizes: list[int] = []
    first = b""

    async def stored() -> AsyncGenerator[tuple[str, bytes]]:
        nonlocal first
        async for data in chunks:
            digests.append(chunk_digest(data))
            sizes.append(len(data))
            if alone:
                first = data
            else:
                yield subjects.model_chunk(digests[-1]), data

    await publisher.put_all(stored())
    manifest = ModelManifest(
        run=run, round=round, parent=parent, codec=codec, table=table, chunks=digests, size_bytes=sum(sizes)
    )
    if alone:
        with_body = manifest.model_copy(update={"body": first})
        if len(with_body.pack()) <= bus.max_message:
            manifest = with_body
        else:
            await publisher.put(subjects.model_chunk(digests[0]), first)
    packed = manifest.pack()
    await publisher.put(subjects.model_manifest(manifest.digest()), packed)
    return manifest, len(packed) + (sum(sizes) if manifest.body is None else 0)


async def read_spans(
    bus: Bus, manifest: ModelManifest, place: Callable[[Span], Vector], only: Sequence[int] | None = None
) -> AsyncGenerator[tuple[Span, Vector]]:
    """A model's spans one after the other.

    Args:
        bus: the connection.
        manifest: of the model.
        place: where to decode a span: a float32 vector of its length.
        only: numbers of the spans to read; all by default.
    """
    framing = Framing(manifest.codec)
    spans = Grid.of(manifest.table).spans
    wanted = range(len(spans)) if only is None else only
    names = [subjects.model_chunk(manifest.chunks[index]) for index in wanted]
    async with aclosing(get_chunks(bus, subjects.MODELS, names, manifest.body)) as chunks:
        for index in wanted:
            out = place(spans[index])
            await apart(
                out.nbytes, framing.decode, await anext(chunks), manifest.chunks[index], spans[index], out
            )
            yield spans[index], out


async def load_values(bus: Bus, manifest: ModelManifest) -> Vector:
    """A whole model in memory: one flat float32 vector in wire order."""
    values = np.empty(Grid.of(manifest.table).size, np.float32)
    async with aclosing(read_spans(bus, manifest, lambda span: values[span.offset : span.end])) as spans:
        async for _ in spans:
            pass
    return values
