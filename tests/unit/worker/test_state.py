"""A worker's folder: locked by one process, and gone where nothing was kept in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.base.errors import ConfigError
from fedbus_worker.state import claim


def test_a_worker_that_never_got_in_leaves_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "state"
    state = claim(root, "hub:4222", "w1")
    with pytest.raises(ConfigError, match="runs already"):
        claim(root, "hub:4222", "w1")
    state.release()
    assert list(root.iterdir()) == []


def test_what_was_kept_stays_and_so_do_others(tmp_path: Path) -> None:
    kept, other = claim(tmp_path, "hub:4222", "w1"), claim(tmp_path, "hub:4222", "w2")
    (kept.folder / "credential.json").write_text("{}")
    kept.release()
    other.release()
    assert [path.name for path in kept.folder.parent.iterdir()] == ["w1"]
    again = claim(tmp_path, "hub:4222", "w1")
    again.release()
