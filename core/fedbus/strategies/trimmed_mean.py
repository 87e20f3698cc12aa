"""The coordinate-wise trimmed mean (Yin et al., 2018): the mean of each coordinate without its extremes."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from fedbus.strategies import Vector, Weights, strategies
from fedbus.strategies.sorting import mean_of_ranks, sorted_tiles

_ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7


@strategies.register
class TrimmedMean:
    """Leaves out the largest and the smallest values of each coordinate.

    It holds while no more updates are hostile than are left out on one side. Weights are ignored: a
    worker says its number of examples itself, and would say a large one.
    """

    name: ClassVar[str] = "trimmed_mean"

    class Params(BaseModel):
        """Its section of the plan."""

        model_config = ConfigDict(frozen=True, extra="forbid")
        trim: float = Field(0.2, gt=0, lt=0.5, description="share of the updates left out on each side")

    def __init__(self, params: Params) -> None:
        self._trim = params.trim

    def left_out(self, count: int) -> int:
        """How many of `count` values go on each side: the share, rounded up, but never all of them."""
        return min(math.ceil(self._trim * count - _ROUNDING), (count - 1) // 2)

    def combine(self, offset: int, rows: Vector, weights: Weights, out: Vector) -> None:
        """Write one span's trimmed mean."""
        out_each = self.left_out(len(rows))
        for place, tile in sorted_tiles(rows):
            out[place] = mean_of_ranks(tile, out_each, len(rows) - 1 - out_each)
