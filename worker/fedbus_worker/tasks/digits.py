"""Handwritten digits: 1,797 real 8x8 images (Alpaydin and Kaynak 1998, UCI optdigits test set), a small CNN.

scikit-learn carries the images as a file; it is found without importing the package.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Tuple

import numpy as np
from fedbus.tasks.task import Site
from fedbus.tasks.torch_task import TorchTask

if TYPE_CHECKING:
    from torch import nn

FILE = "digits.csv.gz"
HELD_OUT = 0.2
# Of all pixels, from 0 to 1.
_MEAN, _DEVIATION = 0.305, 0.376
_CUT_SEED = 1797  # the held-out images are the same for every plan


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
        """
        rows = np.loadtxt(_file(site), delimiter=",", dtype=np.float32, ndmin=2)
        x = ((rows[:, :64] / 16 - _MEAN) / _DEVIATION).reshape(-1, 1, 8, 8)
        y = rows[:, 64].astype(np.int64)
        held_out = _held_out(y)
        if site.held_out:
            return x[held_out], y[held_out]
        pool = np.setdiff1d(np.arange(len(y)), held_out)
        chosen = pool[site.select(y[pool])]
        return x[chosen], y[chosen]

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


def _file(site: Site) -> Path:
    if site.data is not None:
        path = Path(site.data) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                "task digits: there is no {} in the data folder {}".format(FILE, site.data)
            )
        return path
    # Finding a top-level package does not import it.
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "datasets" / "data" / FILE
        if path.is_file():
            return path
    raise FileNotFoundError(
        "task digits: the images are not on this host: pip install 'fedbus[digits]', "
        "or give a data folder that holds {}".format(FILE)
    )


def _held_out(y: np.ndarray) -> np.ndarray:
    """Sorted indices of the held-out images."""
    chance = np.random.RandomState(_CUT_SEED)
    chosen = []
    for label in np.unique(y):
        examples = chance.permutation(np.flatnonzero(y == label))
        chosen.append(examples[: round(HELD_OUT * len(examples))])
    return np.sort(np.concatenate(chosen))
