"""The chunk grid: how one flat float32 vector is cut into messages.

The vector is the `lossy` tensors followed by the `exact` ones, each group starting a
new chunk, so that a chunk has one codec. A raw chunk with its headers stays under the
default 1 MiB payload: 258,048 = 63 * 4096 elements = 1,032,192 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedbus_schemas.update import MAX_CHUNKS, Group, TensorSpec

CHUNK_ELEMENTS = 258_048


@dataclass(frozen=True, slots=True)
class Span:
    """One chunk's place: `count` elements from `offset` of the flat vector."""

    index: int
    group: Group
    offset: int
    count: int

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + self.count


@dataclass(frozen=True, slots=True)
class Grid:
    """All spans of a vector of `size` float32 elements."""

    size: int
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, table: Iterable[TensorSpec]) -> Grid:
        """The grid of a model's tensor table.

        Raises:
            ValueError: the table has no element, or so many that no manifest could list the chunks.
        """
        sizes: dict[Group, int] = {"lossy": 0, "exact": 0}
        for tensor in table:
            sizes[tensor.group] += tensor.size
        # A peer's table may claim any shape: count before building.
        if sum(-(-size // CHUNK_ELEMENTS) for size in sizes.values()) > MAX_CHUNKS:
            raise ValueError(f"{sum(sizes.values())} elements need more than {MAX_CHUNKS} chunks")
        spans: list[Span] = []
        offset = 0
        for group, size in sizes.items():
            for start in range(0, size, CHUNK_ELEMENTS):
                spans.append(Span(len(spans), group, offset + start, min(CHUNK_ELEMENTS, size - start)))
            offset += size
        if not spans:
            raise ValueError("a model needs at least one element")
        return cls(offset, tuple(spans))

    @property
    def bytes(self) -> int:
        """What the vector takes in memory."""
        return 4 * self.size


def order(table: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The table in wire order: lossy tensors first, otherwise as given."""
    return sorted(table, key=lambda tensor: tensor.group != "lossy")
