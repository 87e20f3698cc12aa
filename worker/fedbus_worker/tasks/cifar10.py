"""CIFAR-10: 60,000 colour images of 32x32 (Krizhevsky 2009), a small residual CNN.

The data folder holds the *binary* version, cifar-10-binary.tar.gz of
https://www.cs.toronto.edu/~kriz/cifar.html, unpacked: the six files, or the folder they come in.
Nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Tuple

import numpy as np
from fedbus.tasks.task import Site
from fedbus.tasks.torch_task import TorchTask

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple("data_batch_{}.bin".format(i) for i in range(1, 6))
HELD_OUT = ("test_batch.bin",)
CLASSES = 10
SHAPE = (3, 32, 32)
# A record is the class, then the red, green and blue planes, row by row.
RECORD_BYTES = 1 + 3 * 32 * 32
MAX_RECORDS = 10_000  # per file
# Of the training images, by channel, from 0 to 255.
_MEAN = (125.3, 123.0, 113.9)
_DEVIATION = (63.0, 62.1, 66.7)


class Cifar10(TorchTask):
    """Ten classes; workers train on the data batches, the test batch is held out."""

    name = "cifar10"

    @dataclass(frozen=True)
    class Params(TorchTask.Params):
        """As `TorchTask.Params`, with defaults for such a network."""

        epochs: int = 1
        batch_size: int = 32
        lr: float = 0.01
        momentum: float = 0.9
        weight_decay: float = 5e-4

    def load(self, site: Site) -> Tuple[np.ndarray, np.ndarray]:
        """Images as they are stored, uint8 of shape (n, 3, 32, 32), and their classes, int64 of shape (n,).

        Raises:
            FileNotFoundError: no data folder, or a file is missing; names it.
            ValueError: a file is not of this format; names it.
        """
        folder = _folder(site)
        batches = [read_batch(folder / name) for name in (HELD_OUT if site.held_out else TRAIN)]
        y = np.concatenate([batch[:, 0] for batch in batches]).astype(np.int64)
        chosen = np.arange(len(y)) if site.held_out else site.select(y)
        x = np.empty((len(chosen), *SHAPE), np.uint8)
        start = filled = 0
        for batch in batches:  # one at a time, so that the whole set is never in memory twice
            rows = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
            x[filled : filled + len(rows)] = batch[rows, 1:].reshape(-1, *SHAPE)
            start, filled = start + len(batch), filled + len(rows)
        return x, y[chosen]

    def network(self) -> nn.Module:
        """A convolution, two residual blocks and a dense layer, 308,906 parameters.

        Group instead of batch normalisation: statistics of skewed parts do not average well
        (Hsieh et al. 2020).
        """
        from torch import nn

        return nn.Sequential(
            _prepare(),
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            _residual(32, 64, 1),
            _residual(64, 128, 2),
            nn.GroupNorm(8, 128),
            nn.ReLU(),
            # Not down to one number per channel: that took many more rounds to learn anything.
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(2048, CLASSES),
        )


def read_batch(path: Path) -> np.ndarray:
    """The records of one file, uint8 of shape (n, 3073): the class, then the pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its size or a class is wrong. The size is looked at before anything is read.
    """
    if not path.is_file():
        raise FileNotFoundError("task cifar10: there is no {} in {}".format(path.name, path.parent))
    size = path.stat().st_size
    records, rest = divmod(size, RECORD_BYTES)
    if rest or not 1 <= records <= MAX_RECORDS:
        raise ValueError(
            "task cifar10: {} has {} bytes; a file of the binary version has 1 to {} records "
            "of {} bytes".format(path, size, MAX_RECORDS, RECORD_BYTES)
        )
    found = np.fromfile(path, np.uint8, count=size)
    if len(found) != size:
        raise ValueError("task cifar10: {} became shorter while it was read".format(path))
    batch: np.ndarray = found.reshape(records, RECORD_BYTES)
    if batch[:, 0].max() >= CLASSES:
        first = int(np.argmax(batch[:, 0] >= CLASSES))
        raise ValueError(
            "task cifar10: record {} of {} has the class {}; 0 to 9 are known".format(
                first, path, batch[first, 0]
            )
        )
    return batch


def _folder(site: Site) -> Path:
    if site.data is None:
        raise FileNotFoundError(
            "task cifar10 needs a data folder (join --data) that holds the binary version of CIFAR-10: "
            "cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked"
        )
    inner = Path(site.data) / FOLDER
    return inner if inner.is_dir() else Path(site.data)


def _prepare() -> nn.Module:
    """Standardise bytes, and in training mirror half of the images.

    It is part of the network so that the images stay bytes in memory, a quarter of their float32 size.
    """
    import torch
    from torch import nn

    class Prepare(nn.Module):
        """Without parameters; its constants are no part of the model that travels."""

        mean: Tensor
        deviation: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
            self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(1, 3, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            x = (x.float() - self.mean) / self.deviation
            if self.training:
                mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirrored, x.flip(3), x)
            return x

    return Prepare()


def _residual(inner: int, outer: int, stride: int) -> nn.Module:
    """A block that normalises first (He et al. 2016, "Identity mappings in deep residual networks")."""
    from torch import nn

    class Residual(nn.Module):
        """x + f(x); where the shape changes, x passes a 1x1 convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.GroupNorm(8, inner),
                nn.ReLU(),
                nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False),
                nn.GroupNorm(8, outer),
                nn.ReLU(),
                nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            )
            same = inner == outer and stride == 1
            self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.skip(x) + self.body(x)
            return found

    return Residual()
