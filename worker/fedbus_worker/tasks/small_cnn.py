"""What tasks on small grey images of ten classes share: how they are loaded, and a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Tuple

import numpy as np
from fedbus.tasks.task import Site
from fedbus.tasks.torch_task import TorchTask

from fedbus_worker.tasks.shipped import CLASSES, Images

if TYPE_CHECKING:
    from torch import nn


class SmallCNN(TorchTask):
    """Ten classes; one image in five is held out, the same ones always and of each class alike."""

    images: ClassVar[Images]
    side: ClassVar[int]  # pixels of an image: side x side
    first: ClassVar[Tuple[int, int]] = (3, 1)  # kernel and stride of the first convolution

    def load(self, site: Site) -> Tuple[np.ndarray, np.ndarray]:
        """Images, standardised float32 of shape (n, 1, side, side), and their classes, int64 of shape (n,).

        Raises:
            FileNotFoundError: the images are not on this host; says how to get them.
            ValueError: the data folder's file does not hold such images.
        """
        x, y = self.images.load(site, self.name)
        return x.reshape(-1, 1, self.side, self.side), y

    def network(self) -> nn.Module:
        """Two convolutions and two dense layers.

        Group instead of batch normalisation: statistics of skewed parts do not average well
        (Hsieh et al. 2020).
        """
        from torch import nn

        kernel, stride = self.first
        side = self.side // stride // 2  # after the first convolution, and after pooling
        return nn.Sequential(
            nn.Conv2d(1, 16, kernel, stride=stride, padding=kernel // 2),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )
