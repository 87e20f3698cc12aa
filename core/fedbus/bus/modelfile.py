"""A model as one flat float32 file: read and written span by span, through one chunk of memory.

Read, not mapped: a page that is mapped costs more to touch than to copy, and counts as ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
from fedbus_schemas.update import ModelManifest

from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span


def read_vector(path: Path, grid: Grid) -> Iterator[tuple[Span, Vector]]:
    """The spans of a file, one after the other in the same memory, as `read_span` reads them."""
    scratch = scratch_of(grid)
    with FileIO(path) as file:
        for span in grid.spans:
            values = scratch[: span.count]
            read_span(file, span, values)
            yield span, values


def read_span(file: FileIO, span: Span, values: Vector) -> None:
    """A span's values, in any thread; a file that is too short ends in values that are not finite."""
    got = read_all(file.fileno(), values.data.cast("B"), 4 * span.offset)
    if got != values.nbytes:
        values[got // 4 :] = np.nan


def read_all(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill memory from a place in a file; returns how many bytes there are, if too few."""
    start = offset
    while view and (got := os.preadv(descriptor, [view], offset)):
        view, offset = view[got:], offset + got
    return offset - start


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
    """Write a whole model that came with its manifest, over whatever is in a file.

    Raises:
        ChunkRefused, DigestMismatch: the body is not what the manifest says.
        OSError: the disk is full.
    """
    assert manifest.body is not None
    grid = Grid.of(manifest.table)
    (span,), values = grid.spans, scratch_of(grid)
    Framing(manifest.codec).decode(manifest.body, manifest.chunks[0], span, values)
    descriptor = open_to_write(path, grid)
    try:
        write_span(descriptor, span, values)
    finally:
        os.close(descriptor)


def open_to_write(path: Path, grid: Grid) -> int:
    """A file of a grid's size, to write over what is in it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != grid.bytes:
            os.ftruncate(descriptor, grid.bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def scratch_of(grid: Grid) -> Vector:
    """Memory for the largest span of a grid."""
    return np.empty(longest(grid), np.float32)


def longest(grid: Grid) -> int:
    """Elements of the largest span."""
    return max(span.count for span in grid.spans)


class Scratch:
    """Memory for the largest span of a grid, as often as it is lent at a time, in any threads."""

    def __init__(self, grid: Grid) -> None:
        self._longest = longest(grid)
        self._free: list[Vector] = []

    @contextmanager
    def lent(self, count: int) -> Iterator[Vector]:
        """A vector of `count` elements, for a while; it holds anything."""
        try:
            vector = self._free.pop()
        except IndexError:
            vector = np.empty(self._longest, np.float32)
        try:
            yield vector[:count]
        finally:
            self._free.append(vector)
