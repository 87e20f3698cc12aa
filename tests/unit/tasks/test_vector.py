"""Tensors to one flat vector and back."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus.tasks import vector
from fedbus_schemas.update import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

GROUPS = {"*running_*": "exact", "head.*": "local"}
# Whole numbers up to 2**24 are exact in float32, and up to 2**11 in float16.
RANGES = {
    "float32": 2**24,
    "float64": 2**24,
    "float16": 2**11,
    "int64": 2**24,
    "int32": 2**24,
    "int16": 2**15 - 1,
}
RANGES |= {"int8": 127, "uint8": 255, "bool": 1}


@st.composite
def models(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(
        st.lists(st.sampled_from(["w", "b", "bn.running_mean", "bn.running_var", "c", "d"]), unique=True)
    )
    arrays = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(RANGES)))
        low = 0 if dtype in ("uint8", "bool") else -RANGES[dtype]
        numbers = hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
                             elements=st.integers(low, RANGES[dtype]))  # fmt: skip
        arrays[name] = draw(numbers).astype(dtype)
    return arrays


@given(models())
def test_a_model_survives_the_vector(arrays):
    table = vector.table(arrays, GROUPS)
    flat = np.empty(vector.size(table), np.float32)
    vector.flatten(arrays, table, flat)
    back = vector.Tensors(flat, table)
    assert sorted(back) == sorted(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert (back[name] == array).all()
        assert not np.shares_memory(back[name], flat)


@given(models())
def test_the_table_is_in_wire_order_and_keeps_the_schema(arrays):
    table = vector.table(arrays, GROUPS)
    specs = [TensorSpec.model_validate(row) for row in table]
    assert [spec.model_dump(mode="json") for spec in specs] == table
    groups = [spec.group for spec in specs]
    assert groups == sorted(groups, key=["lossy", "exact"].index)
    assert sum(spec.size for spec in specs) == vector.size(table)


def test_local_tensors_are_left_out():
    arrays = {"head.w": np.ones(3, np.float32), "w": np.zeros(2, np.float32)}
    assert [row["name"] for row in vector.table(arrays, GROUPS)] == ["w"]
    assert vector.local_names(arrays, GROUPS) == ["head.w"]


def test_the_first_matching_pattern_counts():
    assert vector.group_of("a.b", {"a.*": "exact", "*": "local"}) == "exact"


def test_a_difference_is_written_in_place():
    arrays = {"w": np.array([3.0, 5.0], np.float32), "n": np.array(7, np.int64)}
    table = vector.table(arrays, {"n": "exact"})
    out = np.empty(3, np.float32)
    vector.flatten(arrays, table, out, base=np.array([1.0, 1.0, 2.0], np.float32))
    assert out.tolist() == [2.0, 4.0, 5.0]


def test_integers_are_rounded_within_their_range():
    table = [{"name": "n", "shape": [4], "dtype": "uint8", "group": "exact"}]
    flat = np.array([-0.7, 1.6, 254.9, 300.0], np.float32)
    assert vector.Tensors(flat, table)["n"].tolist() == [0, 2, 255, 255]
    far = [{"name": "n", "shape": [1], "dtype": "int64", "group": "exact"}]
    assert vector.Tensors(np.array([1e30], np.float32), far)["n"][0] > 2**62


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_named(value):
    arrays = {"a": np.zeros(2), "layer.w": np.array([0.0, value])}
    table = vector.table(arrays, {})
    with pytest.raises(ValueError, match=r"tensor 'layer\.w' is not finite"):
        vector.flatten(arrays, table, np.empty(4, np.float32))


def test_a_difference_beyond_float32_is_named():
    arrays = {"w": np.array([3e38], np.float32)}
    with pytest.raises(ValueError, match="tensor 'w' is not finite"):
        vector.flatten(
            arrays, vector.table(arrays, {}), np.empty(1, np.float32), base=np.array([-3e38], np.float32)
        )


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, r"tensor 'w': shape changed from \[2, 3\] to \[3, 2\]"),
        ({}, "tensor 'w' is missing"),
    ],
)
def test_a_changed_model_is_refused(arrays, reason):
    table = vector.table({"w": np.zeros((2, 3), np.float32)}, {})
    with pytest.raises(ValueError, match=reason):
        vector.flatten(arrays, table, np.empty(6, np.float32))


def test_what_cannot_travel_is_refused():
    with pytest.raises(
        ValueError, match="tensor 'w': pattern 'w' gives the unknown group 'los'; known: lossy"
    ):
        vector.table({"w": np.zeros(1)}, {"w": "los"})
    with pytest.raises(ValueError, match="tensor 'w': dtype complex128 cannot travel"):
        vector.table({"w": np.zeros(1, complex)}, {})
    table = vector.table({"w": np.zeros(2, np.float32)}, {})
    with pytest.raises(ValueError, match=r"float32 of shape \(2,\), got float64 of shape \(2,\)"):
        vector.Tensors(np.zeros(2), table)
    with pytest.raises(ValueError, match=r"got float32 of shape \(3,\)"):
        vector.Tensors(np.zeros(3, np.float32), table)
