"""One model, span by span: the sum, its bytes, and the file of what whoever decodes them will have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fedbus.bus.modelfile import read_vector, scratch_of, write_span
from fedbus.bus.residualfile import Losing, Residual
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.delta import seal_delta, values_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span


class Sealing:
    """Memory for three chunks, however large the model is.

    Args:
        grid: of the model.
        framing: of its codec.
        base: file of the model that it is added to; none: zeros.
        file: descriptor of the one to write the model into.
        lost: what the base lacks, which is added, too.
        losing: where to note what this model lacks, if it travels as a difference to the base; None: it
            travels whole.
    """

    def __init__(
        self,
        grid: Grid,
        framing: Framing,
        base: Path | None,
        file: int,
        lost: Residual | None,
        losing: Losing | None,
    ) -> None:
        self._framing = framing
        self._spans = read_vector(base, grid) if base else _zeros(grid)
        self._file = file
        self._lost = lost
        self._losing = losing
        self._change, self._scratch = scratch_of(grid), scratch_of(grid)
        self.digests: list[str] = []  # of the values of a difference, once it is added

    def seal(self, write_mean: Callable[[Vector], None]) -> bytes:
        """The bytes of the next chunk.

        Args:
            write_mean: writes its span of the mean update.

        Raises:
            ChunkRefused: a value is not finite, and the codec cannot carry it.
            ResidualDamaged: what the base lacks is not known any more.
            OSError: the disk is full.
        """
        span, values = next(self._spans)
        change = self._change[: span.count]
        write_mean(change)
        if self._lost is not None and span.group == "lossy":
            self._lost.add_to(span, change, self._scratch)
        if self._losing is None:
            values += change
            data = self._framing.encode(span, values)
            if not self._framing.is_exact(span):
                self._framing.decode(data, chunk_digest(data), span, values)
        else:
            data = seal_delta(self._framing, span, change, values, self._scratch)
            if span.group == "lossy":
                self._losing.write(span, change)
            self.digests.append(values_digest(values))
        write_span(self._file, span, values)
        return data


def _zeros(grid: Grid) -> Iterator[tuple[Span, Vector]]:
    scratch = scratch_of(grid)
    for span in grid.spans:
        scratch[:] = 0
        yield span, scratch[: span.count]
