"""One model, span by span: the sum, its bytes, and the file of what whoever decodes them will have."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO

from fedbus.bus.modelfile import Scratch, read_span, write_span
from fedbus.bus.residualfile import Losing, Residual
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.delta import seal_delta, values_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span


class Sealing:
    """Seals spans, in any order and in any threads: memory for three chunks in each, for models of any size.

    Args:
        grid: of the model.
        framing: of its codec.
        base: file of the model that it is added to; None: zeros.
        file: descriptor of the one to write the model into.
        lost: what the base lacks, which is added, too.
        losing: where to note what this model lacks, if it travels as a difference to the base; None: it
            travels whole.
    """

    def __init__(
        self,
        grid: Grid,
        framing: Framing,
        base: FileIO | None,
        file: int,
        lost: Residual | None,
        losing: Losing | None,
    ) -> None:
        self._framing = framing
        self._base = base
        self._file = file
        self._lost = lost
        self._losing = losing
        self._scratch = Scratch(grid)
        self.digests = [""] * len(grid.spans)  # of the values of a difference, once it is added

    def seal(self, span: Span, write_mean: Callable[[Vector], None]) -> bytes:
        """The bytes of a chunk.

        Args:
            span: its place.
            write_mean: writes its span of the mean update.

        Raises:
            ChunkRefused: a value is not finite, and the codec cannot carry it.
            ResidualDamaged: what the base lacks is not known any more.
            OSError: the disk is full.
        """
        lent = self._scratch.lent
        with lent(span.count) as values, lent(span.count) as change, lent(span.count) as scratch:
            if self._base is None:
                values[:] = 0
            else:
                read_span(self._base, span, values)
            write_mean(change)
            if self._lost is not None and span.group == "lossy":
                self._lost.add_to(span, change, scratch)
            if self._losing is None:
                values += change
                data = self._framing.encode(span, values)
                if not self._framing.is_exact(span):
                    self._framing.decode(data, chunk_digest(data), span, values)
            else:
                data = seal_delta(self._framing, span, change, values, scratch)
                if span.group == "lossy":
                    self._losing.write(span, change)
                self.digests[span.index] = values_digest(values)
            write_span(self._file, span, values)
            return data
