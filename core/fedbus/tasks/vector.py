"""Tensors to and from one flat float32 vector, in wire order: lossy ones, then exact ones.

`local` tensors have no place in the vector: they stay on the worker.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

# A row of the tensor table: name, shape, dtype, group. The same fields as fedbus_schemas.update.TensorSpec.
Row = Dict[str, Any]

GROUPS = ("lossy", "exact", "local")
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def group_of(name: str, groups: Mapping[str, str]) -> str:
    """The group of a tensor: that of the first pattern that matches its name, else lossy.

    Raises:
        ValueError: there is no such group.
    """
    for pattern, group in groups.items():
        if fnmatchcase(name, pattern):
            if group not in GROUPS:
                raise ValueError(
                    "tensor {!r}: pattern {!r} gives the unknown group {!r}; known: {}".format(
                        name, pattern, group, ", ".join(GROUPS)
                    )
                )
            return group
    return "lossy"


def table(arrays: Mapping[str, Any], groups: Mapping[str, str]) -> List[Row]:
    """The tensor table of a model, in wire order, ready for JSON.

    Args:
        arrays: the model's tensors by name.
        groups: what the task's `groups()` returned.

    Raises:
        ValueError: an unknown group, or a dtype that cannot travel; names the tensor.
    """
    rows: List[Row] = []
    for name, array in arrays.items():
        group = group_of(name, groups)
        if group == "local":
            continue
        array = np.asarray(array)
        if array.dtype.name not in DTYPES:
            raise ValueError("tensor {!r}: dtype {} cannot travel".format(name, array.dtype))
        rows.append({"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "group": group})
    return sorted(rows, key=lambda row: row["group"] != "lossy")


def local_names(arrays: Mapping[str, Any], groups: Mapping[str, str]) -> List[str]:
    """Names of the tensors that never leave the worker."""
    return [name for name in arrays if group_of(name, groups) == "local"]


def size(table: Sequence[Row]) -> int:
    """Elements of the flat vector."""
    return sum(math.prod(row["shape"]) for row in table)


def flatten(
    arrays: Mapping[str, Any], table: Sequence[Row], out: Vector, base: Optional[Vector] = None
) -> None:
    """Write tensors into a flat vector, or with `base` their difference from it.

    Args:
        arrays: tensors by name; those that the table does not name are left out.
        table: the tensor table, in wire order.
        out: float32 of shape (size(table),), written in place, tensor by tensor, so that
            no second copy of the model is made.
        base: a flat vector to subtract.

    Raises:
        ValueError: a tensor is missing, changed its shape, or is not finite; names it.
    """
    _check_length(out, table)
    start = 0
    for row in table:
        name, shape = row["name"], list(row["shape"])
        if name not in arrays:
            raise ValueError("tensor {!r} is missing from the model".format(name))
        array = np.asarray(arrays[name])
        if list(array.shape) != shape:
            raise ValueError(
                "tensor {!r}: shape changed from {} to {}".format(name, shape, list(array.shape))
            )
        part = out[start : start + array.size]
        with np.errstate(over="ignore", invalid="ignore"):  # found below, and named
            part[...] = array.reshape(-1)
            if base is not None:
                part -= base[start : start + array.size]
        # Each is NaN if any element is, and neither needs another array.
        if part.size and not (math.isfinite(part.min()) and math.isfinite(part.max())):
            raise ValueError("tensor {!r} is not finite (NaN, infinity or beyond float32)".format(name))
        start += array.size


class Tensors(Mapping[str, "NDArray[Any]"]):
    """The tensors of a flat vector, by name, with their own shapes and dtypes.

    Each is made when it is asked for, as a copy: who takes them one by one needs no second model's memory.
    Integers are rounded to the nearest, within the range of their type; a bool is true above one half.
    """

    def __init__(
        self, vector: Vector, table: Sequence[Row], local: Optional[Mapping[str, NDArray[Any]]] = None
    ) -> None:
        """Look where each tensor is.

        Args:
            vector: float32 of shape (size(table),).
            table: the tensor table, in wire order.
            local: tensors that come from elsewhere, after those of the vector.

        Raises:
            ValueError: the vector is not as long as the table says.
        """
        _check_length(vector, table)
        self._vector = vector
        self._local = local or {}
        self._rows = {}
        start = 0
        for row in table:
            self._rows[row["name"]] = (start, row)
            start += math.prod(row["shape"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self._local:
            return self._local[name].copy()
        start, row = self._rows[name]
        values = self._vector[start : start + math.prod(row["shape"])]
        return _restore(values, row["dtype"]).reshape(row["shape"])

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from self._local

    def __len__(self) -> int:
        return len(self._rows) + len(self._local)


def _restore(values: Vector, dtype: str) -> NDArray[Any]:
    # bfloat16 has no numpy type; a task that holds it takes float32.
    kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
    if kind.kind == "b":
        return values > 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        rounded = np.rint(values.astype(np.float64))
        # float64 has no 2**63 - 1; the next number below is the highest that converts.
        top = min(float(limits.max), float(2**63 - 1024))
        return np.clip(rounded, float(limits.min), top).astype(kind)
    return values.astype(kind)  # a copy always: the vector's file may be replaced


def _check_length(vector: Vector, table: Sequence[Row]) -> None:
    if vector.dtype != np.float32 or vector.shape != (size(table),):
        raise ValueError(
            "the vector must be float32 of shape ({},), got {} of shape {}".format(
                size(table), vector.dtype, vector.shape
            )
        )
