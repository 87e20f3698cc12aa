"""The workers of this host, from their state folders and the locks on them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from fedbus.base.errors import ConfigError, NotAcked, UnknownWorker, nearest
from fedbus.runtime.claim import is_claimed
from fedbus_schemas.base import Wire
from pydantic import ValidationError

from fedbus_worker.state import LOCK_FILE, WORKER_FILE, WorkerFile

LEAVE_S = 30.0
_POLL_S = 0.02


class HostedWorker(Wire):
    """One worker of this host, as `fedbus-worker status` prints it."""

    worker: str
    federation: str
    running: bool
    pid: int | None
    since: str
    folder: str


def hosted(root: Path, name: str | None = None) -> list[HostedWorker]:
    """Workers whose state is kept here, by federation and name.

    Raises:
        UnknownWorker: none is called so; the message names the nearest.
    """
    found = [made for path in sorted(root.glob(f"*/*/{WORKER_FILE}")) if (made := _look(path)) is not None]
    if name is None:
        return found
    chosen = [each for each in found if each.worker == name]
    if not chosen:
        close = nearest(name, [each.worker for each in found])
        raise UnknownWorker(
            f"no worker of this host is called {name!r}" + (f"; did you mean {close!r}?" if close else ""),
            hint=f"its state would be in {root}; see: fedbus-worker status",
        )
    return chosen


def leave(root: Path, name: str, federation: str | None = None) -> HostedWorker:
    """Tell a running worker to say goodbye, and return once it has ended.

    Raises:
        UnknownWorker: none of that name runs on this host.
        ConfigError: several do, or it is another user's.
        NotAcked: it did not end in time.
    """
    known = [each for each in hosted(root, name) if federation in (None, each.federation)]
    running = [each for each in known if each.running]
    if not running:
        raise UnknownWorker(f"{name} does not run on this host", hint="see: fedbus-worker status")
    if len(running) > 1:
        where = ", ".join(each.federation for each in running)
        raise ConfigError(f"{name} runs in several federations: {where}", hint="say which: --federation URL")
    worker = running[0]
    assert worker.pid is not None
    try:
        os.kill(worker.pid, signal.SIGTERM)
    except PermissionError as error:
        raise ConfigError(f"{name} is another user's process ({worker.pid})") from error
    except ProcessLookupError:
        return worker  # it left meanwhile
    deadline = time.monotonic() + LEAVE_S
    while is_claimed(Path(worker.folder) / LOCK_FILE):
        if time.monotonic() > deadline:
            raise NotAcked(f"{name} (process {worker.pid}) has not ended within {LEAVE_S:.0f} s")
        time.sleep(_POLL_S)
    return worker


def _look(path: Path) -> HostedWorker | None:
    try:
        noted = WorkerFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None  # it is being written, or is not ours
    folder = path.parent
    # The lock is tried only where its owner may live: a worker that starts now must find it free.
    running = _lives(noted.pid) and is_claimed(folder / LOCK_FILE)
    return HostedWorker(
        worker=folder.name,
        federation=noted.url,
        running=running,
        pid=noted.pid if running else None,
        since=noted.since,
        folder=str(folder),
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
