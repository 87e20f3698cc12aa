"""Error feedback: what an update's encoding lost is added to the next update of the same run.

What an encoding lost is written beside the trained difference, chunk by chunk: memory for one
chunk, and the difference can be encoded again. It waits there until the round is over. If the update
counted, it becomes the run's residual, by one rename. If it did not, the residual stays as it
was, and what the worker trained in that round is lost, as without feedback: it belongs to a
model that the others have left. So nothing is sent twice, whenever the worker is killed.

What a power cut damages of a residual is noticed, and counts as nothing lost.
"""

from __future__ import annotations

import logging
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from fedbus.bus.modelfile import scratch_of
from fedbus.bus.residualfile import Losing, Residual, ResidualDamaged
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span

from fedbus_worker.spool import boot_id

log = logging.getLogger(__name__)


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
        self._losing = losing
        self._scratch = scratch_of(grid)
        self._files = ExitStack()
        self._old = self._open(residual, grid)
        self._new = self._files.enter_context(Losing(losing, grid, _seed()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def encode(self, span: Span, values: Vector) -> bytes:
        """The bytes of one chunk; `values` are spoilt."""
        if span.group != "lossy":
            return self._framing.encode(span, values)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the receiver
            if self._old is not None:
                try:
                    self._old.add_to(span, values, self._scratch)
                except ResidualDamaged as error:
                    _left_out(error)
            data = self._framing.encode_and_subtract(span, values, self._scratch)
        self._new.write(span, values)
        return data

    def save(self, lost: Path) -> None:
        """All chunks are encoded: complete the file, and give it its name."""
        self._new.complete()
        self._losing.replace(lost)

    def _open(self, path: Path, grid: Grid) -> Residual | None:
        if not path.exists():
            return None
        try:
            return self._files.enter_context(Residual(path, grid, _seed()))
        except ResidualDamaged as error:
            _left_out(error)
            return None


def _seed() -> int:
    """Another one after each start of the machine: a residual from before may be an older one of the run."""
    return 1 + zlib.crc32((boot_id() or "").encode())


def _left_out(error: ResidualDamaged) -> None:
    log.warning("what earlier updates lost %s, and left out", error)
