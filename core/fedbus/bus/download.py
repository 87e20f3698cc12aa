"""Downloading a model into a file: what is there already is kept, what does not match is made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from fedbus_schemas.update import ModelManifest

from fedbus.bus.chain import Near
from fedbus.bus.connection import Bus
from fedbus.bus.modelfile import Scratch, read_vector, write_span
from fedbus.bus.models import read_spans
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span

Progress = Callable[[float], None]


async def download(
    bus: Bus, manifest: ModelManifest, part: Path, near: Near, progress: Progress, *, anew: bool = False
) -> None:
    """Make a file what a manifest lists; chunks that it has already are not downloaded.

    Args:
        bus: the connection.
        manifest: of the model.
        part: the file; made if missing.
        near: opens the file of another model, where this host has it.
        progress: told the share that is there.
        anew: what is in the file is known to be something else.
    """
    grid = Grid.of(manifest.table)
    every = list(range(len(grid.spans)))
    missing = every if anew else await apart(grid.bytes, _missing, part, manifest, grid)
    done, scratch = len(grid.spans) - len(missing), Scratch(grid)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)

    def keep(span: Span, write: Callable[[Vector], None]) -> None:
        with scratch.lent(span.count) as values:
            write(values)
            write_span(descriptor, span, values)

    try:
        async with aclosing(read_spans(bus, manifest, keep, missing, near)) as spans:
            async for _ in spans:
                done += 1
                progress(done / len(grid.spans))
        os.ftruncate(descriptor, grid.bytes)
    finally:
        os.close(descriptor)


def _missing(part: Path, manifest: ModelManifest, grid: Grid) -> list[int]:
    if not part.exists():
        return list(range(len(grid.spans)))
    if manifest.values is not None:
        found = (chunk_digest(values.data) for _, values in read_vector(part, grid))
        return [index for index, digest in enumerate(found) if digest != manifest.values[index]]
    framing = Framing(manifest.codec)
    return [
        span.index
        for span, values in read_vector(part, grid)
        if chunk_digest(framing.encode(span, values)) != manifest.chunks[span.index]
    ]
