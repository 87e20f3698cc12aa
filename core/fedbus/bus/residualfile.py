"""What encodings lost, as files: read and written span by span, through the caller's scratch memory.

A file is the lossy part of the vector as flat float32, then a sum of each chunk. It is not synced: what a
power cut damages, blocks that are old or empty, is noticed by the sums, which begin with a seed. Who writes
over one file again and again takes another seed after each start of the machine: a power cut may bring back
all of what was there before. Spans are read and written in any order, and in any threads.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Self

import numpy as np

from fedbus.bus.modelfile import read_all, write_all, write_span
from fedbus.codec import Vector
from fedbus.codec.grid import Grid, Span

_SUM = np.dtype("<u8")


class ResidualDamaged(Exception):
    """The file is not there, or does not hold what was written into it."""


class Residual:
    """What was lost before.

    Args:
        path: of the file.
        grid: of the model.
        seed: as it was written with.

    Raises:
        ResidualDamaged: there is none, or it is of another size.
    """

    def __init__(self, path: Path, grid: Grid, seed: int = 1) -> None:
        spans, self._seed = _lossy(grid), seed
        try:
            self._file = io.FileIO(path)
        except FileNotFoundError:
            raise ResidualDamaged("is not here") from None
        self._file.seek(_bytes(spans))
        end = self._file.read(_SUM.itemsize * len(spans) + 1)
        if len(end) != _SUM.itemsize * len(spans):
            self._file.close()
            raise ResidualDamaged("is of another size")
        self._sums = np.frombuffer(end, _SUM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add_to(self, span: Span, values: Vector, scratch: Vector) -> None:
        """Add what was lost of one lossy span.

        Args:
            span: the chunk's place.
            values: of the span; as they were after an error.
            scratch: at least as long.

        Raises:
            ResidualDamaged: it is not what was written.
        """
        kept = scratch[: span.count]
        got = read_all(self._file.fileno(), kept.data.cast("B"), 4 * span.offset)
        if got != kept.nbytes or _sum(kept, self._seed) != self._sums[span.index]:
            raise ResidualDamaged(f"is damaged in chunk {span.index}")
        values += kept


class Losing:
    """What is being lost, on its way into a file.

    Args:
        path: of the file, which is written over.
        grid: of the model.
        seed: from 1, so that a file of zeros is not one.
    """

    def __init__(self, path: Path, grid: Grid, seed: int = 1) -> None:
        self._spans, self._seed = _lossy(grid), seed
        self._sums = np.zeros(len(self._spans), _SUM)
        # Not cut off first: to write over what is in the page cache takes a third of the time.
        self._file = io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, span: Span, values: Vector) -> None:
        """Note what is lost of one lossy span.

        Raises:
            OSError: the disk is full.
        """
        write_span(self._file.fileno(), span, values)
        self._sums[span.index] = _sum(values, self._seed)

    def complete(self) -> None:
        """All lossy spans are written: end the file, which can be given a name now.

        Raises:
            OSError: the disk is full.
        """
        end = _bytes(self._spans)
        write_all(self._file.fileno(), self._sums.data.cast("B"), end)
        self._file.truncate(end + self._sums.nbytes)
        self._file.close()


def _sum(values: Vector, seed: int) -> int:
    """All bits as numbers of 64 bits, added up: ten times as fast as a CRC-32, which nothing here needs."""
    pairs = len(values) // 2
    last = int(values[2 * pairs :].view(np.uint32).sum())
    return (seed + int(np.add.reduce(values[: 2 * pairs].view(np.uint64))) + last) % (1 << 64)


def _lossy(grid: Grid) -> list[Span]:
    # They come first in the grid, so that a span's number is its place among them.
    return [span for span in grid.spans if span.group == "lossy"]


def _bytes(spans: list[Span]) -> int:
    return 4 * sum(span.count for span in spans)
