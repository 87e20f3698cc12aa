"""Residual files: what is not what was written, or was written before the machine started, is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedbus.bus.modelfile import scratch_of
from fedbus.bus.residualfile import Losing, Residual, ResidualDamaged
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus_schemas.update import TensorSpec

GRID = Grid.of([TensorSpec(name="w", shape=(CHUNK_ELEMENTS + 7,), dtype="float32")])


def write(path: Path, value: float, seed: int) -> None:
    with Losing(path, GRID, seed) as losing:
        for span in GRID.spans:
            losing.write(span, np.full(span.count, value, np.float32))
        losing.complete()


def read(path: Path, seed: int) -> set[float]:
    found = set()
    with Residual(path, GRID, seed) as residual:
        for span in GRID.spans:
            values = np.zeros(span.count, np.float32)
            residual.add_to(span, values, scratch_of(GRID))
            found |= set(values.tolist())
    return found


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "lost", 0.5, 3)
    assert read(tmp_path / "lost", 3) == {0.5}
    write(tmp_path / "lost", 0.25, 3)
    assert read(tmp_path / "lost", 3) == {0.25}


def test_what_was_written_before_the_machine_started_may_be_older_than_it_looks(tmp_path: Path) -> None:
    write(tmp_path / "lost", 0.5, 3)
    with pytest.raises(ResidualDamaged):
        read(tmp_path / "lost", 4)


def test_zeros_are_no_file(tmp_path: Path) -> None:
    write(tmp_path / "lost", 0.0, 1)
    assert read(tmp_path / "lost", 1) == {0.0}
    (tmp_path / "lost").write_bytes(bytes((tmp_path / "lost").stat().st_size))
    with pytest.raises(ResidualDamaged):
        read(tmp_path / "lost", 1)
