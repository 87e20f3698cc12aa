"""A model as one flat float32 file: read and written span by span, through one chunk of memory.

Read, not mapped: a page that is mapped costs more to touch than to copy, and counts as ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
from fedbus_schemas.update import ModelManifest

from fedbus.bus.connection import Bus
from fedbus.bus.models import read_spans
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span

Progress = Callable[[float], None]


def read_vector(path: Path, grid: Grid) -> Iterator[tuple[Span, Vector]]:
    """The spans of a file, one after the other in the same memory.

    A file that is too short ends in values that are not finite.
    """
    scratch = scratch_of(grid)
    with path.open("rb", buffering=0) as file:
        for span in grid.spans:
            values = scratch[: span.count]
            got = file.readinto(values.data.cast("B"))
            if got != values.nbytes:
                values[(got or 0) // 4 :] = np.nan
            yield span, values


def write_span(descriptor: int, span: Span, values: Vector) -> None:
    """Put a span's values into its place.

    Raises:
        OSError: the disk is full.
    """
    write_all(descriptor, values.data.cast("B"), 4 * span.offset)


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Put bytes into their place.

    Raises:
        OSError: the disk is full.
    """
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def write_body(manifest: ModelManifest, path: Path) -> None:
    """Write a model that came with its manifest, over whatever is in a file.

    Raises:
        ChunkRefused, DigestMismatch: the body is not what the manifest says.
        OSError: the disk is full.
    """
    assert manifest.body is not None
    grid = Grid.of(manifest.table)
    (span,), values = grid.spans, scratch_of(grid)
    Framing(manifest.codec).decode(manifest.body, manifest.chunks[0], span, values)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != grid.bytes:
            os.ftruncate(descriptor, grid.bytes)
        write_span(descriptor, span, values)
    finally:
        os.close(descriptor)


async def download(bus: Bus, manifest: ModelManifest, part: Path, progress: Progress) -> None:
    """Make a file what a manifest lists; chunks that it has already are not downloaded.

    Args:
        bus: the connection.
        manifest: of the model.
        part: the file; made if missing.
        progress: told the share that is there.
    """
    grid = Grid.of(manifest.table)
    missing = await apart(grid.bytes, _missing, part, manifest, grid)
    done, scratch = len(grid.spans) - len(missing), scratch_of(grid)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        spans = read_spans(bus, manifest, lambda span: scratch[: span.count], missing)
        async with aclosing(spans):
            async for span, values in spans:
                await apart(values.nbytes, write_span, descriptor, span, values)
                done += 1
                progress(done / len(grid.spans))
        os.ftruncate(descriptor, grid.bytes)
    finally:
        os.close(descriptor)


def scratch_of(grid: Grid) -> Vector:
    """Memory for the largest span of a grid."""
    return np.empty(max(span.count for span in grid.spans), np.float32)


def _missing(part: Path, manifest: ModelManifest, grid: Grid) -> list[int]:
    if not part.exists():
        return list(range(len(grid.spans)))
    framing = Framing(manifest.codec)
    return [
        span.index
        for span, values in read_vector(part, grid)
        if chunk_digest(framing.encode(span, values)) != manifest.chunks[span.index]
    ]
