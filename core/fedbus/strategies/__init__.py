"""How updates fold into one. Pure numpy; one strategy a file."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedbus.base.registry import Registry

Vector = NDArray[np.float32]
Weights = NDArray[np.float64]


class Running(Protocol):
    """A strategy that needs each update once, in the order of acceptance: memory O(model).

    The same updates in the same order give the same bits, which is what replay compares.
    `add` and `finish` are called from several threads at once, each for other spans.
    """

    name: ClassVar[str]

    def start(self, size: int) -> None:
        """Begin a round with vectors of `size` elements; memory of an earlier round is reused."""
        ...

    def add(self, offset: int, x: Vector, weight: float) -> None:
        """Fold one span of one update. `x` may be overwritten."""
        ...

    def counted(self, weight: float) -> None:
        """Note that all spans of an update of that weight were added."""
        ...

    def finish(self, offset: int, out: Vector) -> None:
        """Write the round's mean update for one span into `out`."""
        ...


@runtime_checkable
class Columnwise(Protocol):
    """A strategy that needs all updates' values of a coordinate at once, such as a median.

    The updates are read a second time when the round is closed, span by span: memory for one
    span of each, never for whole models. The order of the updates does not change a bit.
    """

    name: ClassVar[str]

    def combine(self, offset: int, rows: Vector, weights: Weights, out: Vector) -> None:
        """Write the round's mean update for one span into `out`.

        Args:
            offset: first element of the span.
            rows: shape (updates, elements), all finite; may be overwritten.
            weights: shape (updates,), what each update says of its examples.
            out: shape (elements,).
        """
        ...


Strategy = Running | Columnwise
strategies: Registry[Strategy] = Registry("strategies", "fedbus.strategies")


def strategy(name: str, params: dict[str, Any] | None = None) -> Strategy:
    """Make a strategy by name.

    Raises:
        UnknownName: no such strategy.
        PlanRefused: wrong parameters.
    """
    return strategies.build(name, params or {})
