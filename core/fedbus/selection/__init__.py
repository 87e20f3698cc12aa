"""Who takes part in a round. Pure; one policy a file."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from fedbus.base.registry import Registry


class Selection(Protocol):
    """Chooses a cohort."""

    name: ClassVar[str]

    def choose(self, eligible: list[str], count: int, rng: np.random.Generator) -> list[str]:
        """Choose `count` of the eligible workers; join order is kept, and the same rng draws the same."""
        ...


selections: Registry[Selection] = Registry("selections", "fedbus.selection")
