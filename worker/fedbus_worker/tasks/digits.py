"""Digits: 1,797 real 8x8 images (Alpaydin and Kaynak 1998, test set of UCI optdigits), and a small CNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Tuple

import numpy as np
from fedbus.tasks.task import Site
from fedbus.tasks.torch_task import TorchTask

from fedbus_worker.tasks.shipped import DIGITS

if TYPE_CHECKING:
    from torch import nn


class Digits(TorchTask):
    """Ten classes; one image in five is held out, the same ones always and of each class alike."""

    name = "digits"

    @dataclass(frozen=True)
    class Params(TorchTask.Params):
        """As `TorchTask.Params`, with defaults that learn skewed parts well."""

        epochs: int = 2
        batch_size: int = 16
        lr: float = 0.02
        momentum: float = 0.9

    def load(self, site: Site) -> Tuple[np.ndarray, np.ndarray]:
        """Images, standardised float32 of shape (n, 1, 8, 8), and their digits, int64 of shape (n,).

        Raises:
            FileNotFoundError: the images are not on this host; says how to get them.
            ValueError: the data folder's file does not hold such images.
        """
        x, y = DIGITS.load(site, self.name)
        return x.reshape(-1, 1, 8, 8), y

    def network(self) -> nn.Module:
        """Two convolutions and two dense layers, 38,378 parameters.

        Group instead of batch normalisation: statistics of skewed parts do not average well
        (Hsieh et al. 2020).
        """
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
