"""A trainer child knows when what it has read is not what lies there any more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fedbus_worker.sources import MOST_FILES, Sources


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An imported module of a user, with one beside it that it imports."""
    (tmp_path / "beside_for_sources.py").write_text("x = 1\n")
    file = tmp_path / "user_for_sources.py"
    file.write_text("import beside_for_sources\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("user_for_sources", "beside_for_sources"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    __import__("user_for_sources")
    return file


def test_code_that_was_edited_has_changed_and_so_has_what_it_imports(module: Path) -> None:
    sources = Sources()
    sources.note_code("user_for_sources:Task")
    assert sources.changed() is None
    beside = module.with_name("beside_for_sources.py")
    beside.write_text("x = 22\n")
    assert sources.changed() == str(beside)


def test_a_module_that_is_gone_has_changed(module: Path) -> None:
    sources = Sources()
    sources.note_code("user_for_sources:Task")
    module.unlink()
    assert sources.changed() == str(module)


@pytest.mark.parametrize("how", ["grown", "touched", "added", "removed"])
def test_a_data_folder_changes_with_its_files(tmp_path: Path, how: str) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.csv"
    file.write_text("1\n")
    sources = Sources()
    sources.note_data(str(tmp_path))
    sources.note_data(None)
    assert sources.changed() is None
    if how == "grown":
        file.write_text("1\n2\n")
    elif how == "touched":
        os.utime(file, ns=(2 * 10**18, 2 * 10**18))
    elif how == "added":
        (tmp_path / "y.csv").write_text("")
    else:
        file.unlink()
    assert sources.changed() == str(tmp_path)


def test_a_stamp_stays_that_of_the_first_reading(tmp_path: Path) -> None:
    sources = Sources()
    sources.note_data(str(tmp_path))
    (tmp_path / "x.csv").write_text("1\n")
    sources.note_data(str(tmp_path))
    assert sources.changed() == str(tmp_path)


def test_a_large_folder_is_looked_at_in_part(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number:05}").touch()
    sources = Sources()
    sources.note_data(str(tmp_path))
    (tmp_path / f"{MOST_FILES:05}").write_text("beyond")
    assert sources.changed() is None


def test_a_task_that_could_not_be_loaded_is_read_again() -> None:
    sources = Sources()
    sources.note_broken("mine:Mine")
    assert sources.changed() == "mine:Mine"
