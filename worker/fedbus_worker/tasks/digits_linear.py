"""The digits images again, with multinomial logistic regression in numpy alone: for hosts without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Mapping, Tuple

import numpy as np
from fedbus.tasks.task import Arrays, Evaluated, Site, Step, Trained, TrainingTask

from fedbus_worker.tasks.shipped import CLASSES, DIGITS

Model = Dict[str, np.ndarray]
Data = Tuple[np.ndarray, np.ndarray]


class DigitsLinear(TrainingTask):
    """Ten classes, 650 parameters; the held-out images are those of the `digits` task."""

    name = "digits-linear"

    @dataclass(frozen=True)
    class Params:
        """How one round trains on one worker.

        Attributes:
            epochs: passes over the worker's images.
            batch_size: images per step, at most.
            lr: learning rate of plain SGD.
            weight_decay: L2 penalty of the weights.
        """

        epochs: int = 2
        batch_size: int = 16
        lr: float = 0.5
        weight_decay: float = 0.0

        def __post_init__(self) -> None:
            if self.epochs < 1:
                raise ValueError("epochs: must be at least 1, got {}".format(self.epochs))
            if self.batch_size < 1:
                raise ValueError("batch_size: must be at least 1, got {}".format(self.batch_size))
            if not 0 < self.lr < math.inf:
                raise ValueError("lr: must be above 0, got {}".format(self.lr))
            if not 0 <= self.weight_decay < math.inf:
                raise ValueError("weight_decay: must be at least 0, got {}".format(self.weight_decay))

    def load(self, site: Site) -> Data:
        """Images, standardised float32 of shape (n, 64), and their digits, int64 of shape (n,).

        Raises:
            FileNotFoundError: the images are not on this host; says how to get them.
            ValueError: the data folder's file does not hold such images.
        """
        return DIGITS.load(site, self.name)

    def model(self, seed: int) -> Model:
        """Zeros: the loss is convex, so no seed is needed."""
        return {
            "weight": np.zeros((DIGITS.pixels, CLASSES), np.float32),
            "bias": np.zeros(CLASSES, np.float32),
        }

    def arrays(self, model: Model) -> Arrays:
        """The weight, of shape (64, 10), and the bias, of shape (10,)."""
        return model

    def set_arrays(self, model: Model, arrays: Mapping[str, np.ndarray]) -> None:
        """Take both."""
        model.update(arrays)

    def train(self, model: Model, data: Data, step: Step) -> Trained:
        """Minibatch SGD; loss and accuracy are those of the last epoch, while training.

        Raises:
            ValueError: the loss is no longer finite.
        """
        x, y = data
        params = step.params
        chance = np.random.RandomState([step.seed & 0xFFFFFFFF, step.seed >> 32])
        batches = math.ceil(len(y) / params.batch_size)
        for epoch in range(params.epochs):
            loss = right = 0.0
            for i, chosen in enumerate(np.array_split(chance.permutation(len(y)), batches)):
                share = _probabilities(model, x[chosen])
                loss += _loss(share, y[chosen])
                right += int((share.argmax(1) == y[chosen]).sum())
                share[np.arange(len(chosen)), y[chosen]] -= 1  # now the loss's gradient in the logits
                share /= len(chosen)
                model["weight"] -= params.lr * (x[chosen].T @ share + params.weight_decay * model["weight"])
                model["bias"] -= params.lr * share.sum(0)
                step.progress((epoch + (i + 1) / batches) / params.epochs)
            if not math.isfinite(loss):
                raise ValueError("the loss is {} in epoch {}; a lower lr may help".format(loss, epoch + 1))
        return Trained(len(y), {"loss": loss / len(y), "accuracy": right / len(y)})

    def evaluate(self, model: Model, data: Data) -> Evaluated:
        """Mean cross-entropy and accuracy."""
        x, y = data
        share = _probabilities(model, x)
        right = float((share.argmax(1) == y).mean())
        return Evaluated(len(y), {"loss": _loss(share, y) / len(y), "accuracy": right})


def _probabilities(model: Model, x: np.ndarray) -> np.ndarray:
    """Softmax of the logits, of shape (n, 10)."""
    logits = x @ model["weight"] + model["bias"]
    odds: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    return odds


def _loss(share: np.ndarray, y: np.ndarray) -> float:
    """Cross-entropy, summed; a probability that underflowed to 0 counts as the smallest one."""
    found = np.maximum(share[np.arange(len(y)), y], np.finfo(np.float32).tiny)
    return float(-np.log(found).sum(dtype=np.float64))
