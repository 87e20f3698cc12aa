"""Models on the bus: a manifest named by its digest, chunks named by theirs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from fedbus_schemas import subjects
from fedbus_schemas.base import Payload
from fedbus_schemas.update import ModelManifest, TensorSpec, UpdateManifest

from fedbus.base.errors import DigestMismatch, RemoteContractError
from fedbus.bus.chain import Chain, Near, chain_of, nowhere
from fedbus.bus.connection import Bus
from fedbus.bus.modelfile import Scratch
from fedbus.bus.store import Discarding, Publisher, get, get_all
from fedbus.bus.threads import Call, in_order
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.grid import Grid, Span

M = TypeVar("M", UpdateManifest, ModelManifest)
# Finds room for a span, has its values written there, and keeps them; in any thread, several at a time.
Keep = Callable[[Span, Callable[[Vector], None]], None]


class PublishedModel(NamedTuple):
    """A model that is stored: its digest, its manifest without a body, its bytes on the wire."""

    digest: str
    manifest: ModelManifest
    wire_bytes: int


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


async def download_bytes(bus: Bus, digest: str) -> int:
    """What a host downloads that has no model of the run: this one, and all that it is a difference to.

    Raises:
        StreamMissing, DigestMismatch, RemoteContractError: as `read_manifest`.
    """
    read = partial(read_manifest, bus)
    with await chain_of(await read(digest), read, nowhere) as chain:
        return chain.size_bytes


async def publish_model(
    bus: Bus,
    chunks: AsyncIterable[bytes],
    *,
    run: str,
    round: int,
    parent: str | None,
    codec: str,
    table: list[TensorSpec],
    values: list[str] | None = None,
    publisher: Publisher | Discarding | None = None,
) -> PublishedModel:
    """Store a model; its manifest comes last. A single chunk rides in the manifest, where that fits.

    Args:
        bus: the connection.
        chunks: encoded, one for each span of the table's grid, in order.
        run: in which it was made.
        round: in which it was made.
        parent: digest of the model it was made from.
        codec: of the chunks.
        table: its tensors, in wire order.
        values: where the chunks are a difference to the parent, digests of what comes out; complete when the
            last chunk is given.
        publisher: what stores it; one of the connection by default.
    """
    publisher, alone = publisher or Publisher(bus), len(Grid.of(table).spans) == 1
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
        run=run,
        round=round,
        parent=parent,
        codec=codec,
        table=table,
        chunks=digests,
        size_bytes=sum(sizes),
        values=values,
    )
    packed = pack_with_body(manifest, first, bus.max_message) if alone else None
    if packed is not None:
        size = len(packed)
    else:
        if alone:
            await publisher.put(subjects.model_chunk(digests[0]), first)
        packed = manifest.pack()
        size = len(packed) + sum(sizes)
    digest = hashlib.sha256(packed).hexdigest()
    await publisher.put(subjects.model_manifest(digest), packed)
    return PublishedModel(digest, manifest, size)


def pack_with_body(manifest: M, body: bytes, limit: int) -> bytes | None:
    """A manifest with its only chunk in it: one message instead of two; None where it would be too long.

    Args:
        manifest: of an update or a model of one chunk.
        body: the chunk.
        limit: bytes that a message may have.
    """
    packed = manifest.model_copy(update={"body": body}).pack()
    return packed if len(packed) <= limit else None


async def read_spans(
    bus: Bus,
    manifest: ModelManifest,
    keep: Keep,
    only: Sequence[int] | None = None,
    near: Near = nowhere,
) -> AsyncGenerator[Span]:
    """Read a model's values; tells which span is kept, in order, but for those that a wrong file delayed.

    Args:
        bus: the connection.
        manifest: of the model.
        keep: gives what writes the values a float32 vector of the span's length.
        only: numbers of the spans to read; all by default.
        near: opens the file of an ancestor, where this host has it.

    Raises:
        StreamMissing, DigestMismatch, ChunkRefused, RemoteContractError: what is stored is not the model.
    """
    spans = Grid.of(manifest.table).spans
    wanted = list(range(len(spans)) if only is None else only)
    if not wanted:
        return
    wrong: list[int] = []
    with await chain_of(manifest, partial(read_manifest, bus), near) as chain:
        calls = _builds(bus, chain, [spans[index] for index in wanted], keep)
        async with aclosing(in_order(calls)) as built:
            async for span, is_right in built:
                if is_right:
                    yield span
                else:
                    wrong.append(span.index)
    if wrong:  # nobody vouched for that file
        async with aclosing(read_spans(bus, manifest, keep, wrong)) as again:
            async for span in again:
                yield span


async def _builds(
    bus: Bus, chain: Chain, spans: Sequence[Span], keep: Keep
) -> AsyncGenerator[Call[tuple[Span, bool]]]:
    """Calls that make and keep each span, and say whether what this host has was of use."""
    links = [(link, span.index) for span in spans for link in chain.links_of(span)]
    names = [subjects.model_chunk(link.chunks[index]) for link, index in links if link.body is None]
    async with aclosing(get_all(bus, subjects.MODELS, names)) as stored:
        for span in spans:
            data = [await anext(stored) if link.body is None else link.body for link in chain.links_of(span)]
            yield 4 * span.count, partial(_build, chain, span, data, keep)


def _build(chain: Chain, span: Span, data: Sequence[Payload], keep: Keep) -> tuple[Span, bool]:
    try:
        keep(span, partial(chain.build, span, data))
    except DigestMismatch:
        if not chain.begins_with_a_file:
            raise
        return span, False
    return span, True


async def load_values(bus: Bus, manifest: ModelManifest) -> Vector:
    """A whole model in memory: one flat float32 vector in wire order."""
    values = np.empty(Grid.of(manifest.table).size, np.float32)
    await _read_all(bus, manifest, lambda span, write: write(values[span.offset : span.end]))
    return values


async def check_values(bus: Bus, manifest: ModelManifest) -> None:
    """Read a whole model: digests, headers and finite numbers are checked as it is decoded.

    Raises:
        StreamMissing, DigestMismatch, ChunkRefused, RemoteContractError: what is stored is not the model.
    """
    scratch = Scratch(Grid.of(manifest.table))

    def forget(span: Span, write: Callable[[Vector], None]) -> None:
        with scratch.lent(span.count) as values:
            write(values)

    await _read_all(bus, manifest, forget)


async def _read_all(bus: Bus, manifest: ModelManifest, keep: Keep) -> None:
    async with aclosing(read_spans(bus, manifest, keep)) as spans:
        async for _ in spans:
            pass
