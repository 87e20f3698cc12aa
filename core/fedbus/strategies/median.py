"""The coordinate-wise median (Yin et al., 2018): holds while fewer than half of the updates are hostile."""

from __future__ import annotations

from typing import ClassVar

from fedbus.strategies import Vector, Weights, strategies
from fedbus.strategies.sorting import mean_of_ranks, sorted_tiles


@strategies.register
class Median:
    """The middle value of each coordinate; of an even number, the mean of the two middle ones.

    Weights are ignored: a worker says its number of examples itself, and would say a large one.
    """

    name: ClassVar[str] = "median"

    def combine(self, offset: int, rows: Vector, weights: Weights, out: Vector) -> None:
        """Write one span's median."""
        count = len(rows)
        for place, tile in sorted_tiles(rows):
            out[place] = mean_of_ranks(tile, (count - 1) // 2, count // 2)
