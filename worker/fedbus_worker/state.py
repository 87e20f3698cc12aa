"""A worker's name and the folder that goes with it, held by one process at a time."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from pathlib import Path

from fedbus.base.errors import ConfigError
from fedbus.base.settings import variable
from fedbus_schemas.base import is_token


def default_state() -> Path:
    """FEDBUS_STATE, else the user's state folder (XDG)."""
    given = variable("FEDBUS_STATE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fedbus"


class WorkerState:
    """A locked folder: spool, models and import path of one worker of one federation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                f"a worker called {folder.name} runs already on this host",
                hint="choose another --name, or stop it",
            ) from None

    def release(self) -> None:
        """Let another process have the name."""
        os.close(self._lock)


def claim(root: Path, federation: str, name: str | None) -> WorkerState:
    """Lock a worker's folder.

    Args:
        root: the state root.
        federation: which federation, as a folder name.
        name: the worker's name; None takes the host's name and the first free number.

    Raises:
        ConfigError: the name is not a name, or in use.
    """
    home = root / re.sub(r"[^A-Za-z0-9_.-]", "-", federation)
    if name is not None:
        if not is_token(name):
            raise ConfigError(f"--name {name!r}: use letters, digits, '-' and '_', at most 64")
        return WorkerState(home / name)
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0]).strip("-") or "worker"
    for number in range(1, 10_000):
        try:
            return WorkerState(home / f"{host[:50]}-{number}")
        except ConfigError:
            continue
    raise ConfigError("no free worker name on this host", hint="give --name")
