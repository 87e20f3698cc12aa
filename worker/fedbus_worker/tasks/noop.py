"""A task without learning, to exercise everything around it: one vector, one number added to it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Dict, Optional

import numpy as np
from fedbus.tasks.task import Arrays, Evaluated, Site, Step, Trained, TrainingTask

Model = Dict[str, np.ndarray]
TICK_S = 0.02


class Noop(TrainingTask):
    """One float32 vector `w` of zeros; training adds the same number to every element."""

    name = "noop"

    @dataclass(frozen=True)
    class Params:
        """What training pretends to do.

        Attributes:
            elements: length of the vector.
            value: what training adds to every element; without it one number drawn from the step's seed.
            num_examples: the update's weight.
            seconds: how long training takes, with progress all the while.
        """

        elements: int = 25_000
        value: Optional[float] = None
        num_examples: int = 1
        seconds: float = 0.0

        def __post_init__(self) -> None:
            if self.elements < 1:
                raise ValueError("elements: must be at least 1, got {}".format(self.elements))
            if self.num_examples < 1:
                raise ValueError("num_examples: must be at least 1, got {}".format(self.num_examples))
            if not 0 <= self.seconds < math.inf:
                raise ValueError("seconds: must be at least 0, got {}".format(self.seconds))

    def load(self, site: Site) -> None:
        """There is no data."""

    def model(self, seed: int) -> Model:
        """Zeros."""
        return {"w": np.zeros(self.params.elements, np.float32)}

    def arrays(self, model: Model) -> Arrays:
        """The vector itself."""
        return model

    def set_arrays(self, model: Model, arrays: Arrays) -> None:
        """Take the vector."""
        model.update(arrays)

    def train(self, model: Model, data: None, step: Step) -> Trained:
        """Take the time asked for, then add the number."""
        end = time.monotonic() + step.params.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left))
            step.progress(min(1.0, 1.0 - (end - time.monotonic()) / step.params.seconds))
        value = step.params.value
        if value is None:
            value = np.random.RandomState([step.seed & 0xFFFFFFFF, step.seed >> 32]).standard_normal()
        model["w"] += np.float32(value)
        return Trained(step.params.num_examples, {"added": float(value)})

    def evaluate(self, model: Model, data: None) -> Evaluated:
        """The loss is the mean absolute value."""
        return Evaluated(self.params.num_examples, {"loss": float(np.abs(model["w"]).mean(dtype=np.float64))})
