"""Models as safetensors files, in the dtypes of their tensors. Nothing of a foreign file is trusted.

fedbus keeps the wire order and the groups of the tensors in the metadata, so that a file that it
wrote becomes the same vector again. A file without them is read in its own order, as `lossy`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fedbus_schemas.update import MAX_TENSORS, TensorSpec
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedbus.base.errors import ConfigError, ModelRefused, describe
from fedbus.codec import Vector
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid, Span, order
from fedbus.tasks.vector import Tensors

# What safetensors calls the dtypes that can travel. bfloat16 has no numpy type.
DTYPES = {
    "F32": "float32", "F64": "float64", "F16": "float16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
# Metadata keys of ours: `[[name, group], ...]` in wire order, and the digest of the tensors.
ORDER, TENSORS = "tensor_order", "tensors"
_ORDER: TypeAdapter[list[tuple[str, str]]] = TypeAdapter(list[tuple[str, str]])


def write_tensors(path: Path, table: list[TensorSpec], values: Vector, metadata: Mapping[str, str]) -> str:
    """Write a model to a file, whole or not at all; return the digest of its tensors.

    Args:
        path: the file; an existing one is replaced.
        table: the model's tensors, in wire order.
        values: its flat vector.
        metadata: what else to keep in the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    arrays = dict(Tensors(values, [tensor.model_dump() for tensor in table]))
    digest = hashlib.sha256()
    for name, array in arrays.items():
        _digest(digest, name, array)
    known = {
        ORDER: json.dumps([[tensor.name, tensor.group] for tensor in table]),
        TENSORS: digest.hexdigest(),
    }
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(arrays, part, {**metadata, **known})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error}") from error
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An open file whose header was checked: what it says fits together and into what the file holds."""

    path: Path
    table: list[TensorSpec]
    metadata: Mapping[str, str]
    _file: Any

    def spans(self) -> Iterator[tuple[Span, Vector]]:
        """The flat vector chunk by chunk, each in the same scratch; one tensor is in memory at a time.

        Raises:
            ModelRefused: a tensor is not finite, or all of them are not those that the file was written with.
        """
        grid = Grid.of(self.table)
        scratch = np.empty(min(CHUNK_ELEMENTS, grid.size), np.float32)
        digest = hashlib.sha256()
        spans, filled = iter(grid.spans), 0
        span = next(spans)
        for tensor in self.table:
            values = self._tensor(tensor, digest)
            while values.size:
                taken = min(values.size, span.count - filled)
                scratch[filled : filled + taken] = values[:taken]
                values, filled = values[taken:], filled + taken
                if filled == span.count:
                    yield span, scratch[:filled]
                    span, filled = next(spans, span), 0
        known = self.metadata.get(TENSORS)
        if known is not None and known != digest.hexdigest():
            raise ModelRefused(f"{self.path}: the tensors are not those that fedbus wrote into this file")

    def _tensor(self, tensor: TensorSpec, digest: Any) -> Vector:
        try:
            array: NDArray[Any] = self._file.get_tensor(tensor.name)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ModelRefused(f"{self.path}: tensor {tensor.name!r} cannot be read: {error}") from error
        _digest(digest, tensor.name, array)
        with np.errstate(over="ignore", invalid="ignore"):  # found below, and named
            values = array.reshape(-1).astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelRefused(
                f"{self.path}: tensor {tensor.name!r} is not finite (NaN, infinity or beyond float32)"
            )
        return values


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a file and check its header: names, shapes, dtypes, sizes. No tensor is read.

    Raises:
        ConfigError: there is no such file.
        ModelRefused: it is no safetensors file, or holds what cannot travel.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        # The library checks that the offsets fill the file without holes or overlaps, as the shapes say.
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelRefused(f"{path} is not a safetensors file: {error}") from error
    with file:
        metadata: dict[str, str] = dict(file.metadata() or {})  # type: ignore[no-untyped-call]
        yield TensorFile(path, _table(path, file, metadata), metadata, file)


def _table(path: Path, file: Any, metadata: Mapping[str, str]) -> list[TensorSpec]:
    names = list(file.offset_keys())
    if not 1 <= len(names) <= MAX_TENSORS:
        raise ModelRefused(f"{path} has {len(names)} tensors, allowed 1 to {MAX_TENSORS}")
    groups = _groups(path, names, metadata.get(ORDER))
    table = order([_spec(path, file, name, group) for name, group in groups])
    try:
        Grid.of(table)
    except ValueError as error:
        raise ModelRefused(f"{path}: {error}") from error
    return table


def _groups(path: Path, names: list[str], known: str | None) -> list[tuple[str, str]]:
    if known is None:
        return [(name, "lossy") for name in names]
    try:
        groups = _ORDER.validate_json(known)
    except ValidationError as error:
        raise ModelRefused(f"{path}: metadata {ORDER!r}: {describe(error)}") from error
    if sorted(name for name, _ in groups) != sorted(names):
        raise ModelRefused(f"{path}: metadata {ORDER!r} names other tensors than the file has")
    return groups


def _spec(path: Path, file: Any, name: str, group: str) -> TensorSpec:
    stored = file.get_slice(name)
    dtype = stored.get_dtype()
    if dtype not in DTYPES:
        raise ModelRefused(
            f"{path}: tensor {name[:100]!r} is {dtype}, which cannot travel",
            hint=f"convert it to one of {', '.join(DTYPES.values())}",
        )
    values = {"name": name, "shape": stored.get_shape(), "dtype": DTYPES[dtype], "group": group}
    try:
        return TensorSpec.model_validate(values)
    except ValidationError as error:
        raise ModelRefused(f"{path}: tensor {name[:100]!r}: {describe(error)}") from error


def _digest(digest: Any, name: str, array: NDArray[Any]) -> None:
    """Add one tensor: what it is called, what it is, and its bytes."""
    digest.update(f"{name}\0{array.dtype.str}{list(array.shape)}\0".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
