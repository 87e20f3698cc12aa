"""Digits: 1,797 real 8x8 images (Alpaydin and Kaynak 1998, test set of UCI optdigits), and a small CNN."""

from __future__ import annotations

from dataclasses import dataclass

from fedbus.tasks.torch_task import TorchTask

from fedbus_worker.tasks.shipped import DIGITS
from fedbus_worker.tasks.small_cnn import SmallCNN


class Digits(SmallCNN):
    """38,378 parameters."""

    name = "digits"
    images = DIGITS
    side = 8

    @dataclass(frozen=True)
    class Params(TorchTask.Params):
        """As `TorchTask.Params`, with defaults that learn skewed parts well."""

        epochs: int = 2
        batch_size: int = 16
        lr: float = 0.02
        momentum: float = 0.9
