"""The sum of a running strategy: which updates are in it, and what it means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus.strategies import Running
from fedbus_schemas.update import TensorSpec

# Writes the mean update of the next span, and how many bytes that reads.
Mean = tuple[Callable[[Vector], None], int]


class Sum:
    """Updates of one round, added one after the other.

    Args:
        strategy: how they add up; it holds the memory, for one model.
    """

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
        """Add one update; its values are spoilt."""
        await apart(values.nbytes, self._add, values, weight)
        self._added.append(key)

    async def means(self, grid: Grid) -> AsyncGenerator[Mean]:
        """The mean update, span by span."""
        for span in grid.spans:
            yield partial(self._strategy.finish, span.offset), 4 * span.count

    def _add(self, values: Vector, weight: float) -> None:
        for start in range(0, values.size, CHUNK_ELEMENTS):
            self._strategy.add(start, values[start : start + CHUNK_ELEMENTS], weight)
        self._strategy.counted(weight)
