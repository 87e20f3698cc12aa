"""The shipped digits task: its data."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from fedbus import Site
from fedbus.tasks.params import build_task
from fedbus.tasks.task import Partition
from fedbus_worker.tasks.digits import Digits

# A worker that trains on everything is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore:the plan has no data section")

TASK = build_task(Digits, {})
IMAGES = 1797


def _rows(x):
    return {row.tobytes() for row in x}


def test_shapes_and_the_held_out_cut():
    x, y = TASK.load(Site())
    held_x, held_y = TASK.load(Site(held_out=True))
    assert x.shape == (len(y), 1, 8, 8)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert len(y) + len(held_y) == IMAGES
    assert len(_rows(x) & _rows(held_x)) == 0
    assert len(held_y) / IMAGES == pytest.approx(0.2, abs=0.005)
    assert abs(float(x.mean())) < 0.05
    assert float(x.std()) == pytest.approx(1, abs=0.05)
    whole = np.bincount(y) + np.bincount(held_y)
    assert np.abs(np.bincount(held_y) - 0.2 * whole).max() <= 0.5  # stratified


def test_parts_make_up_the_training_pool():
    pool, _ = TASK.load(Site())
    parts = [TASK.load(Site(partition=Partition("dirichlet", 4, i, seed=3, alpha=0.3)))[0] for i in range(4)]
    assert sum(map(len, parts)) == len(pool)
    assert set().union(*map(_rows, parts)) == _rows(pool)


def test_the_held_out_images_do_not_depend_on_the_plan():
    held, _ = TASK.load(Site(held_out=True))
    again, _ = TASK.load(Site(held_out=True, partition=Partition("iid", 4, 1, seed=9)))
    assert (held == again).all()


def test_a_data_folder_may_hold_the_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no digits\.csv\.gz in the data folder"):
        TASK.load(Site(data=str(tmp_path)))
    np.savetxt(tmp_path / "digits.csv.gz", np.arange(650).reshape(10, 65) % 10, delimiter=",", fmt="%d")
    x, y = TASK.load(Site(data=str(tmp_path)))
    held, _ = TASK.load(Site(data=str(tmp_path), held_out=True))
    assert len(x) + len(held) == 10
    assert len(x) == len(y)


def test_without_the_images_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'fedbus\[digits\]'"):
        TASK.load(Site())
