"""The files of what models lack: a run's own last two, whoever else writes there."""

from __future__ import annotations

from pathlib import Path

from fedbus_aggregator.residuals import Residuals
from fedbus_schemas.ids import RoundRef


def keep(files: Residuals, run: str, number: int) -> None:
    ref = RoundRef(run, number)
    with files.making(ref) as part:
        part.write_bytes(b"lost")
        files.keep(part, ref, f"model-{number}", number - 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_that_of_the_base_stays_and_older_ones_go(tmp_path: Path) -> None:
    files = Residuals(tmp_path / "lost")
    assert files.runs() == set()
    for number in range(8, 12):
        keep(files, "run-1", number)
        keep(files, "run-10", number)
    kept = [f"run-1{end}.{number}.model-{number}" for end in ("", "0") for number in (10, 11)]
    assert names(tmp_path / "lost") == sorted(kept)
    assert files.path(RoundRef("run-1", 11), "model-11").read_bytes() == b"lost"
    assert files.runs() == {"run-1", "run-10"}
    files.forget("run-1")
    assert names(tmp_path / "lost") == ["run-10.10.model-10", "run-10.11.model-11"]


def test_what_is_not_kept_is_removed_and_what_another_makes_is_not(tmp_path: Path) -> None:
    ours, theirs = Residuals(tmp_path / "lost"), Residuals(tmp_path / "lost")
    with ours.making(RoundRef("run-1", 1)) as part:
        part.write_bytes(b"lost")
        keep(theirs, "run-1", 1)
        assert part.exists()
    assert names(tmp_path / "lost") == ["run-1.1.model-1"]


def test_one_that_hung_deletes_nothing_of_what_another_made_meanwhile(tmp_path: Path) -> None:
    hung, other = Residuals(tmp_path / "lost"), Residuals(tmp_path / "lost")
    keep(hung, "run-1", 1)
    second = RoundRef("run-1", 2)
    with hung.making(second) as part:
        part.write_bytes(b"lost")
        for number in (2, 3):
            keep(other, "run-1", number)
        hung.keep(part, second, "model-of-its-own", 1)
    kept = ["run-1.2.model-2", "run-1.2.model-of-its-own", "run-1.3.model-3"]
    assert names(tmp_path / "lost") == kept


def test_one_that_hung_for_long_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    hung, other = Residuals(tmp_path / "lost"), Residuals(tmp_path / "lost")
    second = RoundRef("run-1", 2)
    with hung.making(second) as part:
        part.write_bytes(b"lost")
        for number in range(2, 5):
            keep(other, "run-1", number)
        hung.keep(part, second, "model-of-its-own", 1)
    assert names(tmp_path / "lost") == ["run-1.3.model-3", "run-1.4.model-4"]


def test_each_of_many_open_runs_finds_its_own(tmp_path: Path) -> None:
    files = Residuals(tmp_path / "lost")
    for number in (1, 2):
        for run in range(20):
            keep(files, f"run-{run}", number)
    for run in range(20):
        assert files.path(RoundRef(f"run-{run}", 1), "model-1").exists()
        assert files.path(RoundRef(f"run-{run}", 2), "model-2").exists()
