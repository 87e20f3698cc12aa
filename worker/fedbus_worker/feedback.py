"""Error feedback: what an update's encoding lost is added to the next update of the same run.

What an encoding lost is written beside the trained difference, chunk by chunk: memory for one
chunk, and the difference can be encoded again. It waits there until the round is over. If the update
counted, it becomes the run's residual, by one rename. If it did not, the residual stays as it
was, and what the worker trained in that round is lost, as without feedback: it belongs to a
model that the others have left. So nothing is sent twice, whenever the worker is killed.

A file is the lossy part of the vector as flat float32, then a CRC-32 of each chunk. It is not
synced: what a power cut damages is noticed, and counts as nothing lost.
"""

from __future__ import annotations

import io
import logging
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_SUM = np.dtype("<u4")


class Feedback:
    """One update's encoding: adds the residual, and writes down what is lost.

    Args:
        framing: of a codec that wants feedback.
        grid: of the model.
        residual: file of the run, which may not be there.
        losing: the file to write.
    """

    def __init__(self, framing: Framing, grid: Grid, residual: Path, losing: Path) -> None:
        self._framing = framing
        self._spans = [span for span in grid.spans if span.group == "lossy"]
        self._losing = losing
        self._scratch = np.empty(max((span.count for span in self._spans), default=0), np.float32)
        self._sums = np.zeros(len(self._spans), _SUM)
        self._files = ExitStack()
        self._old, self._old_sums = self._open(residual)
        self._new = self._files.enter_context(io.FileIO(losing, "w"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def encode(self, span: Span, values: Vector) -> bytes:
        """The bytes of one chunk; `values` are spoilt."""
        if span.group != "lossy":
            return self._framing.encode(span, values)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the receiver
            self._add(span, values)
            data = self._framing.encode_and_subtract(span, values, self._scratch)
        self._new.seek(4 * span.offset)
        self._new.write(values.data)
        self._sums[span.index] = zlib.crc32(values.data)
        return data

    def save(self, lost: Path) -> None:
        """All chunks are encoded: complete the file, and give it its name."""
        self._new.seek(4 * self._elements)
        self._new.write(self._sums.data)
        self._files.close()
        self._losing.replace(lost)

    @property
    def _elements(self) -> int:
        return sum(span.count for span in self._spans)

    def _open(self, path: Path) -> tuple[io.FileIO | None, NDArray[np.uint32] | None]:
        size = 4 * self._elements
        try:
            file = self._files.enter_context(io.FileIO(path))
        except FileNotFoundError:
            return None, None
        file.seek(size)
        end = file.read(self._sums.nbytes + 1)
        if len(end) != self._sums.nbytes:
            log.warning("what earlier updates lost is of another size, and left out")
            return None, None
        return file, np.frombuffer(end, _SUM)

    def _add(self, span: Span, values: Vector) -> None:
        if self._old is None or self._old_sums is None:
            return
        kept = self._scratch[: span.count]
        self._old.seek(4 * span.offset)
        got = self._old.readinto(kept.data.cast("B"))
        if got != kept.nbytes or zlib.crc32(kept.data) != self._old_sums[span.index]:
            log.warning("what earlier updates lost is damaged, and left out", extra={"chunk": span.index})
            return
        values += kept
