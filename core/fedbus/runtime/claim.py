"""One owner per folder: a lock file that also says who holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from fedbus.base.errors import ConfigError

# Longer than a server whose owner was killed takes to end (SIGTERM, and SIGKILL after 5 s).
_PATIENCE_S = 10.0


class Claim:
    """Holds a lock file until `release`, or until the last process that inherited its descriptor ends.

    A lock whose owner is dead is waited for: what the owner left behind is ending.

    Args:
        path: the lock file.
        taken: begin of the error's text when somebody else holds it.

    Raises:
        ConfigError: somebody else holds it.
    """

    def __init__(self, path: Path, taken: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(self.descriptor):
            owner = os.pread(self.descriptor, 20, 0).decode(errors="replace").strip()
            if _lives(owner) or time.monotonic() > deadline:
                os.close(self.descriptor)
                raise ConfigError(
                    f"{taken} (process {owner or 'unknown'})", hint="stop it first, or use another --dir"
                )
            time.sleep(0.01)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one in."""
        os.close(self.descriptor)


def is_claimed(path: Path) -> bool:
    """Whether somebody holds the lock file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # whoever looks may see the folder mounted read-only
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(owner: str) -> bool:
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
