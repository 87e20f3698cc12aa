"""A worker's name and the folder that goes with it, held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path

from fedbus.base.errors import ConfigError
from fedbus.base.settings import variable
from fedbus.bus.credentials import write_private
from fedbus_schemas.base import is_token
from pydantic import BaseModel, ConfigDict, Field

LOCK_FILE = "lock"
WORKER_FILE = "worker.json"


def default_state() -> Path:
    """FEDBUS_STATE, else the user's state folder (XDG)."""
    given = variable("FEDBUS_STATE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fedbus"


class WorkerFile(BaseModel):
    """What a worker's folder says of the process that holds it, or held it last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    pid: int = Field(gt=0)
    since: str


class WorkerState:
    """A locked folder: spool, models and import path of one worker of one federation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        while not _is_file_of(self._lock, folder / LOCK_FILE):  # who held it before has just removed it
            os.close(self._lock)
            self._lock = _lock(folder)

    def note(self, url: str, since: str) -> None:
        """Tell `fedbus-worker status` and `leave` who holds this folder."""
        file = WorkerFile(url=url, pid=os.getpid(), since=since)
        write_private(self.folder / WORKER_FILE, file.model_dump_json(indent=2) + "\n")

    def release(self) -> None:
        """Let another process have the name. A folder that holds nothing but the lock goes."""
        if [path.name for path in self.folder.iterdir()] == [LOCK_FILE]:
            (self.folder / LOCK_FILE).unlink()
            with contextlib.suppress(OSError):  # another worker's folder, or another process that comes
                self.folder.rmdir()
                self.folder.parent.rmdir()
        os.close(self._lock)


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"a worker called {folder.name} runs already on this host",
            hint="choose another --name, or stop it",
        ) from None
    return descriptor


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def federation_folder(root: Path, federation: str) -> Path:
    """Where the workers of one federation keep their state."""
    return root / re.sub(r"[^A-Za-z0-9_.-]", "-", federation)


def claim(root: Path, federation: str, name: str | None, *, passing: Collection[str] = ()) -> WorkerState:
    """Lock a worker's folder.

    Args:
        root: the state root.
        federation: which federation, as a folder name.
        name: the worker's name; None takes the host's name and the first free number.
        passing: names not to take by themselves.

    Raises:
        ConfigError: the name is not a name, or in use.
    """
    home = federation_folder(root, federation)
    if name is not None:
        if not is_token(name):
            raise ConfigError(f"--name {name!r}: use letters, digits, '-' and '_', at most 64")
        return WorkerState(home / name)
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0]).strip("-") or "worker"
    for number in range(1, 10_000):
        free = f"{host[:50]}-{number}"
        if free in passing:
            continue
        try:
            return WorkerState(home / free)
        except ConfigError:
            continue
    raise ConfigError("no free worker name on this host", hint="give --name")
