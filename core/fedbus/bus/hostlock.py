"""Locks between the processes of a host, by name: the kernel frees them when their process ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

POLL_S = 0.01


class Patience:
    """Says when whoever writes a file is stopped, and not slow: it has not changed for a while.

    Args:
        path: the file, which may not be there.
        most_s: how long that is.
    """

    def __init__(self, path: Path, most_s: float) -> None:
        self._path = path
        self._most_s = most_s
        self._seen: tuple[int, int] | None = None
        self._since: float | None = None

    def is_over(self, now: float, *, excused: bool) -> bool:
        """Look at the file.

        Args:
            now: seconds, of any clock that is not set.
            excused: nobody can be expected to get further now.
        """
        seen = None
        with suppress(FileNotFoundError):
            stat = self._path.stat()
            seen = stat.st_size, stat.st_mtime_ns
        if self._since is None or excused or seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since >= self._most_s


class HostLock:
    """A lock that this process holds, shared with others or alone."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, alone: bool) -> HostLock | None:
        """The lock; None while another process holds it in a way that does not go with this one."""
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            # Somebody may have removed the file in between: then it locks nothing.
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return cls(path, descriptor)
            os.close(descriptor)

    @classmethod
    async def wait_shared(cls, path: Path, enough: Callable[[], bool]) -> HostLock | None:
        """The lock, shared, as soon as nobody holds it alone; None once that is waited for enough."""
        while (lock := cls.take(path, alone=False)) is None:
            if enough():
                return None
            await asyncio.sleep(POLL_S)
        return lock

    def share(self) -> bool:
        """Let others share it from now on; False where somebody took it alone meanwhile: it is lost."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        return True

    def remove(self) -> None:
        """Delete its file, and release it."""
        self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Give it up."""
        os.close(self._descriptor)
