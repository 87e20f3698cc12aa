"""What a TorchTask says to data that it cannot train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedbus import Site, TorchTask
from fedbus.tasks.params import build_task
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Step

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y = np.ones((6, 4), np.float32), np.arange(6) % 3


class Flowers(TorchTask):
    """Three classes."""

    def network(self) -> Any:
        from torch import nn

        return nn.Linear(4, 3)

    def device(self) -> str:
        return "cpu"


class Folder(Flowers):
    """Reads a folder that nobody gave."""

    def load(self, site: Site) -> Any:
        return open(site.data)  # type: ignore[arg-type]  # noqa: PTH123


def _train(data: Any) -> Any:
    task = build_task(Flowers, {})
    return task.train(task.model(1), data, Step(task.params, 1, 1, lambda fraction: None))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((X, Y.astype(np.float32)), r"y.astype\(np.int64\)"),
        ((X.astype(np.float64), Y), r"x as float64.*x.astype\(np.float32\)"),
        ((X, np.ones((6, 3))), r"y as float64"),
        (None, "returned nothing"),
        ((X, Y[:3]), "6 examples but 3 targets"),
    ],
)
def test_data_that_cannot_be_trained_on_is_explained(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _train(data)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_any_width_are_classes(kind: type) -> None:
    assert "accuracy" in _train((X, Y.astype(kind))).metrics


def test_a_task_that_reads_a_folder_which_was_not_given_is_told_so() -> None:
    resident = Resident(f"{__name__}:Folder", {})
    table, arrays = resident.init(1)
    weights = np.concatenate([array.ravel() for array in arrays.values()])
    with pytest.raises(ValueError, match=r"site\.data is None where the worker joined without --data"):
        resident.evaluate(Site(held_out=True), weights, table)
