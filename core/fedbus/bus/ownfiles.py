"""Files that only this process writes and reads, used again and again.

Beside a broker that syncs, to make and delete a file costs far more than to write over one.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from fedbus.bus.hostlock import HostLock


class OwnFiles:
    """A folder that is this process's until it ends, among those of others.

    Args:
        parent: where the folders of several processes are. Made, as the folder is, when a file is taken.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._lock: HostLock | None = None
        self._folder = parent
        self._made = 0
        self._free: list[Path] = []

    def take(self) -> Path:
        """A file for one use; there may be something in it."""
        if self._lock is None or not self._folder.is_dir():  # somebody may clean up
            self.close()
            self._claim()
        if not self._free:
            self._made += 1
            return self._folder / f"{self._made}.f32"
        return self._free.pop()

    def give(self, path: Path) -> None:
        """Give a file back."""
        self._free.append(path)

    def has(self, path: Path) -> bool:
        """Whether a file is one of these."""
        return self._lock is not None and path.parent == self._folder

    def close(self) -> None:
        """Leave the folder to another process."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._free, self._made = [], 0

    def _claim(self) -> None:
        self._parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in count(1):
            self._lock = HostLock.take(self._parent / f"own-{number}.lock", alone=True)
            if self._lock is not None:
                self._folder = self._parent / f"own-{number}"
                self._folder.mkdir(exist_ok=True, mode=0o700)
                return
