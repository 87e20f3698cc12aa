"""A uniform sample without replacement (McMahan et al., 2017)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fedbus.selection import selections


@selections.register
class Uniform:
    """Every eligible worker is equally likely."""

    name: ClassVar[str] = "uniform"

    def choose(self, eligible: list[str], count: int, rng: np.random.Generator) -> list[str]:
        """Draw without replacement; join order is kept."""
        if count >= len(eligible):
            return list(eligible)
        # Sorted before the draw: who joined first must not change who is drawn.
        names = sorted(eligible)
        drawn = {names[i] for i in rng.choice(len(names), size=count, replace=False)}
        return [name for name in eligible if name in drawn]
