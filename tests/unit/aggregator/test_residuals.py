"""The files of what models lack: a run's own last two, and few."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fedbus_aggregator import residuals
from fedbus_aggregator.residuals import Residuals


def keep(files: Residuals, run: str, number: int) -> None:
    with files.making(run) as part:
        part.write_bytes(b"lost")
        files.keep(part, run, f"model-{number}", f"model-{number - 1}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_that_of_the_base_stays_and_older_ones_go(tmp_path: Path) -> None:
    files = Residuals(tmp_path / "lost")
    for number in range(1, 5):
        keep(files, "run-1", number)
        keep(files, "run-10", number)
    kept = [f"run-1{end}.model-{number}" for end in ("", "0") for number in (3, 4)]
    assert names(tmp_path / "lost") == sorted(kept)
    assert files.path("run-1", "model-4").read_bytes() == b"lost"
    files.forget("run-1")
    assert names(tmp_path / "lost") == ["run-10.model-3", "run-10.model-4"]


def test_what_is_not_kept_is_removed_and_what_another_makes_is_not(tmp_path: Path) -> None:
    ours, theirs = Residuals(tmp_path / "lost"), Residuals(tmp_path / "lost")
    with ours.making("run-1") as part:
        part.write_bytes(b"lost")
        keep(theirs, "run-1", 1)
        assert part.exists()
    assert names(tmp_path / "lost") == ["run-1.model-1"]


def test_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals, "KEPT", 3)
    files = Residuals(tmp_path / "lost")
    for number in range(5):
        keep(files, f"run-{number}", 1)
        os.utime(files.path(f"run-{number}", "model-1"), (number, number))
    keep(files, "run-5", 1)
    assert names(tmp_path / "lost") == ["run-3.model-1", "run-4.model-1", "run-5.model-1"]
