"""The CIFAR-10 task, on small files in the format of the binary version."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fedbus import Site
from fedbus.tasks.params import build_task
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Partition
from fedbus.tasks.vector import flatten, size
from fedbus_worker.tasks.cifar10 import HELD_OUT, MAX_RECORDS, RECORD_BYTES, TRAIN, Cifar10

TASK = build_task(Cifar10, {})
PER_FILE = 10


def _records(chance, records):
    """Noise in a colour that tells the class: learnable, and each image another."""
    found = chance.randint(0, 60, (records, RECORD_BYTES)).astype(np.uint8)
    found[:, 0] = np.arange(records) % 10
    planes = found[:, 1:].reshape(records, 3, 1024)
    for image, label in zip(planes, found[:, 0], strict=True):
        image += np.array([label // 9, label // 3 % 3, label % 3], np.uint8)[:, None] * 90
    return found


@pytest.fixture
def records(tmp_path):
    """The records of each file, which are in the temporary folder."""
    chance = np.random.RandomState(0)
    found = {name: _records(chance, PER_FILE) for name in (*TRAIN, *HELD_OUT)}
    for name, rows in found.items():
        (tmp_path / name).write_bytes(rows.tobytes())
    return found


def _rows(x):
    return [row.tobytes() for row in x]


def test_workers_get_the_data_batches_and_the_evaluator_the_test_batch(tmp_path, records):
    x, y = TASK.load(Site(data=str(tmp_path)))
    assert (x.shape, x.dtype) == ((5 * PER_FILE, 3, 32, 32), np.uint8)
    assert (y.shape, y.dtype) == ((5 * PER_FILE,), np.int64)
    expected = np.concatenate([records[name] for name in TRAIN])
    assert (x.reshape(len(x), -1) == expected[:, 1:]).all()
    assert (y == expected[:, 0]).all()
    red, green, blue = records["data_batch_1.bin"][7, 1:].reshape(3, 1024)
    assert x[7, 1, 2, 3] == green[2 * 32 + 3]
    assert (x[7, 0, 0, 1], x[7, 2, 31, 31]) == (red[1], blue[-1])
    held_x, held_y = TASK.load(Site(data=str(tmp_path), held_out=True))
    assert _rows(held_x) == _rows(records["test_batch.bin"][:, 1:])
    assert held_y.tolist() == records["test_batch.bin"][:, 0].tolist()


def test_parts_make_up_the_data_batches(tmp_path, records):
    whole = Site(data=str(tmp_path))
    parts = [
        TASK.load(Site(data=whole.data, partition=Partition("dirichlet", 3, i, seed=1, alpha=0.3)))
        for i in range(3)
    ]
    x, y = TASK.load(whole)
    labelled = dict(zip(_rows(x), y.tolist(), strict=True))
    dealt = [pair for px, py in parts for pair in zip(_rows(px), py.tolist(), strict=True)]
    assert len(dealt) == len(labelled) == 5 * PER_FILE
    assert dict(dealt) == labelled


def test_the_folder_of_the_archive_may_lie_in_the_data_folder(tmp_path, records):
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for name in records:
        (tmp_path / name).rename(inner / name)
    assert len(TASK.load(Site(data=str(tmp_path)))[1]) == 5 * PER_FILE


def test_without_a_data_folder_the_error_says_what_it_must_hold():
    with pytest.raises(
        FileNotFoundError, match=r"needs a data folder \(join --data\).*cifar-10-binary\.tar\.gz"
    ):
        TASK.load(Site())


@pytest.mark.parametrize("name", [TRAIN[0], TRAIN[4], *HELD_OUT])
def test_a_missing_file_is_named(tmp_path, records, name):
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {name} in"):
        TASK.load(Site(data=str(tmp_path), held_out=name in HELD_OUT))


@pytest.mark.parametrize(
    "bytes_", [0, 1, RECORD_BYTES - 1, PER_FILE * RECORD_BYTES + 1, (MAX_RECORDS + 1) * RECORD_BYTES, 2**40]
)
def test_a_file_of_a_wrong_size_is_named_and_not_read(tmp_path, records, bytes_):
    os.truncate(tmp_path / TRAIN[2], bytes_)  # sparse: a terabyte takes no space, unless it is read
    reason = rf"data_batch_3\.bin has {bytes_} bytes; a file .* has 1 to 10000 records of 3073 bytes"
    with pytest.raises(ValueError, match=reason):
        TASK.load(Site(data=str(tmp_path)))


def test_a_class_out_of_range_is_named(tmp_path, records):
    with (tmp_path / TRAIN[1]).open("rb+") as file:
        file.seek(4 * RECORD_BYTES)
        file.write(b"\x0a")
    with pytest.raises(
        ValueError, match=r"record 4 of .*data_batch_2\.bin has the class 10; 0 to 9 are known"
    ):
        TASK.load(Site(data=str(tmp_path)))


def test_the_network_learns_and_its_constants_do_not_travel(tmp_path, records, one_thread):
    resident = Resident("fedbus_worker.tasks.cifar10:Cifar10", {"epochs": 2, "batch_size": 5, "lr": 0.002})
    table, arrays = resident.init(1)
    assert size(table) == 308_906
    assert {row["group"] for row in table} == {"lossy"}
    assert not [row["name"] for row in table if "mean" in row["name"] or "deviation" in row["name"]]
    weights, delta = np.empty(308_906, np.float32), np.empty(308_906, np.float32)
    flatten(arrays, table, weights)
    site, held_out = Site(data=str(tmp_path)), Site(data=str(tmp_path), held_out=True)
    before = resident.evaluate(held_out, weights, table)
    trained = resident.train(site, weights, table, 1, 1, lambda fraction: None, lambda: delta)
    after = resident.evaluate(held_out, weights + delta, table)
    assert (trained.num_examples, after.num_examples) == (5 * PER_FILE, PER_FILE)
    assert after.metrics["loss"] < 0.7 * before.metrics["loss"]
    assert after == resident.evaluate(held_out, weights + delta, table)  # nothing is mirrored while scoring
