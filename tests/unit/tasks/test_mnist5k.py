"""The shipped MNIST task: its data, and that it learns."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from fedbus import Site
from fedbus.tasks.params import build_task
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Partition
from fedbus.tasks.vector import flatten, size
from fedbus_worker.tasks.mnist5k import Mnist5k

# A worker that trains on everything is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore:the plan has no data section")

TASK = build_task(Mnist5k, {})


@pytest.fixture(scope="module")
def pool():
    return TASK.load(Site())


@pytest.fixture(scope="module")
def held_out():
    return TASK.load(Site(held_out=True))


def _rows(x):
    return {row.tobytes() for row in x}


def test_shapes_and_the_held_out_cut(pool, held_out):
    (x, y), (held_x, held_y) = pool, held_out
    assert x.shape == (4000, 1, 28, 28)
    assert held_x.shape == (1000, 1, 28, 28)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert len(_rows(x) & _rows(held_x)) == 0
    assert np.bincount(y).tolist() == [400] * 10
    assert np.bincount(held_y).tolist() == [100] * 10
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)


def test_parts_make_up_the_training_pool(pool):
    parts = [TASK.load(Site(partition=Partition("dirichlet", 3, i, seed=3, alpha=0.3)))[0] for i in range(3)]
    assert sum(map(len, parts)) == 4000
    assert set().union(*map(_rows, parts)) == _rows(pool[0])


def test_one_epoch_on_a_quarter_learns(one_thread):
    resident = Resident("fedbus_worker.tasks.mnist5k:Mnist5k", {})
    table, arrays = resident.init(1)
    assert size(table) == 106_218
    assert {row["group"] for row in table} == {"lossy"}
    weights, delta = np.empty(106_218, np.float32), np.empty(106_218, np.float32)
    flatten(arrays, table, weights)
    told: list[float] = []
    quarter = Site(partition=Partition("iid", 4, 0, seed=1))
    before = resident.evaluate(Site(held_out=True), weights, table)
    trained = resident.train(quarter, weights, table, 1, 1, told.append, lambda: delta)
    after = resident.evaluate(Site(held_out=True), weights + delta, table)
    assert (trained.num_examples, after.num_examples) == (1000, 1000)
    assert before.metrics["accuracy"] < 0.3
    assert after.metrics["accuracy"] > 0.7
    assert told == sorted(told)
    assert told[-1] == 1


def test_without_the_images_the_error_says_what_to_install(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no mnist_5k\.csv\.gz in the data folder"):
        TASK.load(Site(data=str(tmp_path)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"task mnist5k: .* pip install 'fedbus\[mnist5k\]'"):
        TASK.load(Site())
