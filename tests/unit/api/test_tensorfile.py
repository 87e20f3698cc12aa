"""Models as files: what was written is read back as the same vector in the same order, in any dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedbus.api.tensorfile import DTYPES, open_tensors, write_tensors
from fedbus.base.errors import ModelRefused
from fedbus.codec import Vector
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus_schemas.update import TensorSpec
from safetensors.numpy import load_file, save_file

TABLE = [
    TensorSpec(name="z.weight", shape=(3, CHUNK_ELEMENTS // 2), dtype="float32"),
    TensorSpec(name="scalar", shape=(), dtype="float64"),
    TensorSpec(name="nothing", shape=(0, 4), dtype="float32"),
    TensorSpec(name="a.bias", shape=(5,), dtype="float16"),
    TensorSpec(name="bn.mean", shape=(7,), dtype="float32", group="exact"),
    TensorSpec(name="bn.count", shape=(), dtype="int64", group="exact"),
    TensorSpec(name="mask", shape=(4,), dtype="bool", group="exact"),
]


def vector() -> Vector:
    values = np.arange(Grid.of(TABLE).size, dtype=np.float32)
    values[-17:-12] = [0.5, 1, 2, 3, 4]  # what float16 holds
    values[-4:] = [1, 0, 0, 1]
    return values


def read(path: Path) -> tuple[list[TensorSpec], Vector]:
    with open_tensors(path) as file:
        return file.table, np.concatenate([values.copy() for _, values in file.spans()])


def test_a_written_model_reads_back_as_the_same_vector(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = write_tensors(path, TABLE, vector(), {"run": "run-1"})
    table, values = read(path)
    assert table == TABLE, "order and groups are kept"
    np.testing.assert_array_equal(values, vector())
    arrays = load_file(path)
    assert {name: str(array.dtype) for name, array in arrays.items()} == {t.name: t.dtype for t in TABLE}
    assert write_tensors(path, table, values, {}) == digest, "the same tensors, the same digest"
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "nothing else is left"


def test_spans_are_those_of_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TABLE, vector(), {})
    with open_tensors(path) as file:
        found = [(span, len(values)) for span, values in file.spans()]
    assert found == [(span, span.count) for span in Grid.of(TABLE).spans]


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values())))
def test_foreign_files_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"b": np.ones((2, 2), dtype), "a": np.zeros(3, dtype)}, path)
    table, values = read(path)
    assert {(t.name, t.shape, t.dtype, t.group) for t in table} == {
        ("b", (2, 2), dtype, "lossy"),
        ("a", (3,), dtype, "lossy"),
    }
    assert values.sum() == 4


def test_a_tensor_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TABLE, vector(), {})
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelRefused, match="not those that fedbus wrote"):
        read(path)
