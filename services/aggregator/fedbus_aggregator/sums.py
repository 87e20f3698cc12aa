"""The sum of a running strategy: which updates are in it, and what it means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import ClassVar, Protocol

from fedbus.bus.threads import WIDTH, Call, apart, in_order
from fedbus.codec import Vector
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus.strategies import Running
from fedbus_schemas.update import TensorSpec

# Writes the mean update of the next span, and how many bytes that reads.
Mean = tuple[Callable[[Vector], None], int]


class Means(Protocol):
    """What mean updates are made of."""

    @property
    def at_once(self) -> int | None:
        """Of how many spans the mean may be written at a time; None: of any number."""
        ...

    def means(self, grid: Grid) -> AsyncGenerator[Mean]:
        """The mean update, span by span."""
        ...


class Sum:
    """Updates of one round, added one after the other.

    Args:
        strategy: how they add up; it holds the memory, for one model.
    """

    at_once: ClassVar[None] = None

    def __init__(self, strategy: Running) -> None:
        self._strategy = strategy
        self._added: list[str] = []

    async def start(self, table: Sequence[TensorSpec] | None) -> None:
        """Begin again with nothing; without a table until the first update brings one."""
        self._added = []
        if table:
            size = Grid.of(table).size
            await apart(4 * size, self._strategy.start, size)

    def lacks(self, keys: Sequence[str]) -> int:
        """How many of these updates are to be added; all, where others or another order were added."""
        return len(keys) - (len(self._added) if self.begins(keys) else 0)

    def begins(self, keys: Sequence[str]) -> bool:
        """Whether what was added are the first of these updates, in their order."""
        return self._added == list(keys[: len(self._added)])

    async def add(self, key: str, values: Vector, weight: float) -> None:
        """Add one update; its values are spoilt. A sum that one was added to in part begins with none."""
        self._added.append("")
        async with aclosing(in_order(self._parts(values, weight))) as added:
            async for _ in added:
                pass
        self._strategy.counted(weight)
        self._added[-1] = key

    async def means(self, grid: Grid) -> AsyncGenerator[Mean]:
        """The mean update, span by span."""
        for span in grid.spans:
            yield partial(self._strategy.finish, span.offset), 4 * span.count

    async def _parts(self, values: Vector, weight: float) -> AsyncGenerator[Call[None]]:
        """A part for each thread, of whole chunks: a hop costs as much as adding one."""
        each = -(-values.size // (WIDTH * CHUNK_ELEMENTS)) * CHUNK_ELEMENTS
        for start in range(0, values.size, each):
            part = values[start : start + each]
            yield part.nbytes, partial(self._add, start, part, weight)

    def _add(self, offset: int, values: Vector, weight: float) -> None:
        for start in range(0, values.size, CHUNK_ELEMENTS):
            self._strategy.add(offset + start, values[start : start + CHUNK_ELEMENTS], weight)
