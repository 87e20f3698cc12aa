"""Locks between the processes of a host, by name: the kernel frees them when their process ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from pathlib import Path

POLL_S = 0.01


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
    async def wait_shared(cls, path: Path) -> HostLock:
        """The lock, shared, as soon as nobody holds it alone."""
        while (lock := cls.take(path, alone=False)) is None:  # noqa: ASYNC110  # another process ends it
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
