"""Files that only this process writes and reads, used again and again.

Beside a broker that syncs, to make and delete a file costs far more than to write over one.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from fedbus.base.clock import random_token
from fedbus.bus.hostlock import HostLock


class OwnFiles:
    """A folder that is this process's until it ends, among those of others.

    Its name is random: a folder that somebody removed is followed by another one, so a path never means
    something else than it did.

    Args:
        parent: where the folders of several processes are. Made, as the folder is, when a file is taken.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder = parent
        self._lock: HostLock | None = None
        self._made = 0
        self._free: list[Path] = []

    def take(self) -> Path:
        """A file for one use; there may be something in it."""
        if self._lock is None or not self._folder.is_dir():  # somebody may clean up
            self.close()
            self._sweep()
            self._claim()
        if not self._free:
            self._made += 1
            return self._folder / f"{self._made}.f32"
        return self._free.pop()

    def give(self, path: Path) -> None:
        """Give a file back."""
        if self.has(path):
            self._free.append(path)

    def has(self, path: Path) -> bool:
        """Whether a file is one of these."""
        return self._lock is not None and path.parent == self._folder

    def close(self) -> None:
        """Delete the folder."""
        if self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()
            self._lock = None
            self._free, self._made = [], 0

    def _claim(self) -> None:
        while self._lock is None:
            self._folder = self._parent / f"own-{random_token()}"
            self._folder.mkdir(parents=True, mode=0o700)
            with suppress(FileNotFoundError):  # another process took it for one that nobody has
                self._lock = HostLock.take(self._folder / "lock", alone=True)

    def _sweep(self) -> None:
        """Delete the folders of processes that were killed."""
        for folder in self._parent.glob("own-*"):
            try:
                lock = HostLock.take(folder / "lock", alone=True)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
