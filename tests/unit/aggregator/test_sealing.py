"""The memory and the bytes of a model that is sealed, span by span."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus.modelfile import open_to_write
from fedbus.bus.residualfile import Losing, Residual, ResidualDamaged
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid, Span
from fedbus_aggregator.sealing import Sealing
from fedbus_schemas.update import TensorSpec

CHUNKS = 12
EXACT = 50


def grid_of(chunks: int) -> Grid:
    return Grid.of(
        [
            TensorSpec(name="w", shape=(chunks * CHUNK_ELEMENTS,), dtype="float32"),
            TensorSpec(name="mean", shape=(EXACT,), dtype="float32", group="exact"),
        ]
    )


def vector(seed: int, grid: Grid) -> Vector:
    return np.random.default_rng(seed).standard_normal(grid.size, dtype=np.float32)


def giving(update: Vector, span: Span) -> Callable[[Vector], None]:
    def write_mean(out: Vector) -> None:
        out[:] = update[span.offset : span.end]

    return write_mean


def seal(folder: Path, grid: Grid, update: Vector, *, whole: bool) -> list[bytes]:
    """The chunks of the model `new`, made from `base` and what it lacks, where that is there."""
    with ExitStack() as files:
        file = open_to_write(folder / "new", grid)
        files.callback(os.close, file)
        lost = folder / "lost"
        residual = files.enter_context(Residual(lost, grid)) if lost.exists() else None
        losing = None if whole else files.enter_context(Losing(folder / "losing", grid))
        framing = Framing("dense" if whole else "ecq")
        base = files.enter_context(FileIO(folder / "base"))
        sealing = Sealing(grid, framing, base, file, residual, losing)
        chunks = [sealing.seal(span, giving(update, span)) for span in grid.spans]
        if losing is not None:
            losing.complete()
    assert all(sealing.digests) == (not whole)
    return chunks


@pytest.mark.parametrize("whole", [True, False])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, whole: bool) -> None:
    grid = grid_of(CHUNKS)
    update = vector(1, grid)
    vector(2, grid).tofile(tmp_path / "base")
    seal(tmp_path, grid, update, whole=False)
    (tmp_path / "losing").replace(tmp_path / "lost")
    tracemalloc.start()
    try:
        chunks = seal(tmp_path, grid, update, whole=whole)
        held = sum(map(len, chunks))
        assert tracemalloc.get_traced_memory()[1] - held < 6 * 4 * CHUNK_ELEMENTS
    finally:
        tracemalloc.stop()


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    grid = grid_of(2)
    vector(2, grid).tofile(tmp_path / "base")
    seal(tmp_path, grid, vector(1, grid), whole=False)
    (tmp_path / "losing").replace(tmp_path / "lost")
    made = [
        (seal(tmp_path, grid, vector(3, grid), whole=False), (tmp_path / "losing").read_bytes())
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_a_whole_model_has_what_the_base_lacked(tmp_path: Path) -> None:
    grid = grid_of(1)
    base, first, second = (vector(seed, grid) for seed in range(3))
    base.tofile(tmp_path / "base")
    seal(tmp_path, grid, first, whole=False)
    behind = np.abs(np.fromfile(tmp_path / "new", np.float32) - (base + first))
    assert behind[:-EXACT].max() > 0.1
    assert not behind[-EXACT:].any()
    (tmp_path / "losing").replace(tmp_path / "lost")
    (tmp_path / "new").replace(tmp_path / "base")
    seal(tmp_path, grid, second, whole=True)
    np.testing.assert_allclose(np.fromfile(tmp_path / "new", np.float32), base + first + second, atol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "sum", "cut", "longer", "empty"])
def test_what_is_damaged_is_not_used(tmp_path: Path, damage: str) -> None:
    grid = grid_of(2)
    np.zeros(grid.size, np.float32).tofile(tmp_path / "base")
    seal(tmp_path, grid, vector(1, grid), whole=False)
    path = (tmp_path / "losing").replace(tmp_path / "lost")
    data = bytearray(path.read_bytes())
    match damage:
        case "flip":
            data[5 * CHUNK_ELEMENTS] ^= 1
        case "sum":
            data[-1] ^= 1
        case "cut":
            del data[-1:]
        case "longer":
            data += b"\0"
        case "empty":
            data.clear()
    path.write_bytes(data)
    with pytest.raises(ResidualDamaged):
        seal(tmp_path, grid, vector(1, grid), whole=True)
