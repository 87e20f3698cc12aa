"""A task without learning, to exercise everything around it: one vector, one number added to it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Dict, Mapping, Optional

import numpy as np
from fedbus.tasks.task import Arrays, Evaluated, Site, Step, Trained, TrainingTask

Model = Dict[str, np.ndarray]
TICK_S = 0.02
STRETCH = 100_003  # of noise; prime, so that no two chunks are alike


class Noop(TrainingTask):
    """One float32 vector `w` of zeros; training adds one number to every element, and noise if asked to."""

    name = "noop"

    @dataclass(frozen=True)
    class Params:
        """What training pretends to do.

        Attributes:
            elements: length of the vector.
            value: what training adds to every element; without it one number drawn from the step's seed.
            spread: standard deviation of noise that it adds, too, for codecs to have something to encode.
            num_examples: the update's weight.
            seconds: how long training takes, with progress all the while.
        """

        elements: int = 25_000
        value: Optional[float] = None
        spread: float = 0.0
        num_examples: int = 1
        seconds: float = 0.0

        def __post_init__(self) -> None:
            if self.elements < 1:
                raise ValueError("elements: must be at least 1, got {}".format(self.elements))
            if not 0 <= self.spread < math.inf:
                raise ValueError("spread: must be at least 0, got {}".format(self.spread))
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

    def set_arrays(self, model: Model, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the vector, and no longer keep the one before."""
        model.clear()
        model.update(arrays)

    def train(self, model: Model, data: None, step: Step) -> Trained:
        """Take the time asked for, then add the number."""
        end = time.monotonic() + step.params.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left))
            step.progress(min(1.0, 1.0 - (end - time.monotonic()) / step.params.seconds))
        value = step.params.value
        chance = np.random.RandomState([step.seed & 0xFFFFFFFF, step.seed >> 32])
        if value is None:
            value = chance.standard_normal()
        model["w"] += np.float32(value)
        if step.params.spread:
            # One stretch again and again: to draw millions of numbers takes longer than all the rest.
            noise = (step.params.spread * chance.standard_normal(STRETCH)).astype(np.float32)
            for start in range(0, len(model["w"]), STRETCH):
                part = model["w"][start : start + STRETCH]
                part += noise[: len(part)]
        return Trained(step.params.num_examples, {"added": float(value)})

    def evaluate(self, model: Model, data: None) -> Evaluated:
        """The loss is the mean absolute value."""
        return Evaluated(self.params.num_examples, {"loss": float(np.abs(model["w"]).mean(dtype=np.float64))})
