"""Backup and restore of a stack: what its broker keeps, and who may connect. Everything else can be lost.

The broker's files are copied while it works, then once more what changed meanwhile, with the broker stopped
(SIGSTOP). So all streams are of one instant, and are what a `kill -9` at that instant would have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedbus.base.clock import SystemClock
from fedbus.base.errors import ConfigError, RemoteContractError, UnknownRun, describe
from fedbus.bus import Bus
from fedbus.bus.credentials import write_private
from fedbus.bus.runs import Runs
from fedbus.runtime.accounts import ACCOUNTS_FILE
from fedbus.runtime.broker import Broker
from fedbus.runtime.claim import Claim, is_claimed
from fedbus.runtime.listening import LOOPBACK
from fedbus.runtime.stackfile import STACK_FILE, STACK_LOCK, make_folder, read_stack

INDEX = "backup.json"
STORE = Path("broker") / "store"
# While the broker works it is copied again and again, until so little is left to copy while it is stopped.
LITTLE_BYTES, MOST_PASSES = 64 << 20, 5
STOP_S = 5.0
# Whoever supervises the broker ends it when it does not answer for a while.
MOST_STOPPED_S = 10.0
COARSE_NS = 10**9
_PIECE = 1 << 20


class KeptFile(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class BackupIndex(BaseModel):
    """What a backup says of itself; written last, so one without it is not whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    made_at: float
    files: dict[str, KeptFile]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made, and for how long the broker stood still."""

    index: BackupIndex
    stopped_s: float


def back_up(folder: Path, to: Path) -> Made:
    """Copy a stack's state; it may run.

    Args:
        folder: of the stack.
        to: a new folder, or an empty one. Its owner alone can read it: it holds secrets.

    Raises:
        ConfigError: there is no stack, the target is not empty, or has too little space.
    """
    stack = read_stack(folder)
    if stack is None:
        raise ConfigError(f"no stack was ever started in {folder}", hint="name its folder with --dir")
    make_folder(to)
    if any(to.iterdir()):
        raise ConfigError(f"{to} is not empty", hint="a backup goes into a new folder")
    to.chmod(0o700)
    _check_space(folder / STORE, to)
    copied: dict[Path, tuple[int, int]] = {}
    for _ in range(MOST_PASSES):
        if _copy_changed(folder / STORE, to / STORE, copied) <= LITTLE_BYTES:
            break
    pid = _running(folder)
    with _stopped(pid):
        began = time.monotonic()
        _copy_changed(folder / STORE, to / STORE, copied)
        stopped_s = time.monotonic() - began if pid else 0.0
        if _running(folder) != pid or (pid is not None and not _stands_still(pid)):
            raise ConfigError("the broker was started meanwhile: what was copied is not of one instant")
    if stopped_s > MOST_STOPPED_S:
        raise ConfigError(
            f"the broker had to stand still for {stopped_s:.0f} s", hint="back up to a faster disk"
        )
    # Who was let in later than the instant of the store can come again, where the accounts are newer.
    write_private(to / ACCOUNTS_FILE, (folder / ACCOUNTS_FILE).read_text())
    stack.model_copy(update={"broker_pid": None, "processes": {}}).save(to)
    names = sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())
    index = BackupIndex(made_at=SystemClock().now(), files={name: _digest(to / name) for name in names})
    write_private(to / INDEX, index.model_dump_json(indent=2) + "\n")
    return Made(index, stopped_s)


async def restore(backup: Path, folder: Path) -> tuple[BackupIndex, list[str]]:
    """Make a stack from a backup, or leave nothing behind.

    Returns:
        What the backup says of itself, and the runs that go on.

    Raises:
        ConfigError: it is no backup, a file of it is damaged, or the folder has a stack already.
        BusUnavailable: the broker does not come up on what was restored.
    """
    index = await asyncio.to_thread(put_back, backup, folder)
    try:
        return index, await take_up(folder)
    except BaseException:
        _remove(folder)
        raise


def put_back(backup: Path, folder: Path) -> BackupIndex:
    """Put a backup's files where a stack can be started from them.

    Raises:
        ConfigError: it is no backup, a file of it is damaged, or the folder has a stack already.
    """
    index = read_index(backup)
    make_folder(folder)
    claim = Claim(folder / STACK_LOCK, f"a stack runs in {folder}")
    try:
        if (folder / STACK_FILE).exists() or (folder / STORE).exists():
            raise ConfigError(f"{folder} has a stack already", hint="restore into a new folder: --dir")
        try:
            for name, kept in index.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _copy_private(backup / name, target)
                if _digest(target) != kept:
                    raise ConfigError(f"{backup / name} is not what was backed up: it is damaged")
        except BaseException:
            _remove(folder)
            raise
    finally:
        claim.release()
    return index


def read_index(backup: Path) -> BackupIndex:
    """What a backup holds.

    Raises:
        ConfigError: it is no backup, or names a file outside of it.
    """
    try:
        index = BackupIndex.model_validate_json((backup / INDEX).read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{backup} is no backup, or not a whole one: it has no {INDEX}") from None
    except ValidationError as error:
        raise ConfigError(
            f"{backup / INDEX} is damaged: {describe(error, BackupIndex.model_fields)}"
        ) from error
    for name in index.files:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{backup / INDEX} names a file outside of the backup: {name!r}")
    missing = [name for name in (ACCOUNTS_FILE, STACK_FILE) if name not in index.files]
    if missing:
        raise ConfigError(f"{backup} lacks {', '.join(missing)}")
    return index


async def take_up(folder: Path) -> list[str]:
    """Mark the runs of a restored stack that are not over, so that its workers follow them.

    They may have heard of rounds that came after the backup, and would believe older ones to be over.

    Returns:
        Names of these runs.

    Raises:
        BusUnavailable: the broker does not come up on what was restored.
    """
    stack = read_stack(folder)
    assert stack is not None, "it was restored"
    # Where it listened before, the stack that was backed up may still do.
    broker = Broker(folder, listen=f"{LOOPBACK}:{_free_port()}")
    await asyncio.to_thread(broker.start)
    try:
        bus = await Bus.connect(broker.accounts.credentials("planner"))
        try:
            runs, open_ = Runs(bus), []
            for name in await runs.names():
                with contextlib.suppress(UnknownRun, RemoteContractError):
                    record, revision = await runs.get(name)
                    if not record.done:
                        now = SystemClock().now()
                        await runs.set(record.model_copy(update={"restored_at": now}), revision)
                        open_.append(name)
            return open_
        finally:
            await bus.close()
    finally:
        await asyncio.to_thread(broker.stop)
        stack.save(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / "broker", ignore_errors=True)
    for name in (STACK_FILE, ACCOUNTS_FILE):
        (folder / name).unlink(missing_ok=True)


def _copy_private(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as read, os.fdopen(descriptor, "wb") as written:
        shutil.copyfileobj(read, written, _PIECE)


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _running(folder: Path) -> int | None:
    """The broker's process; None where none runs: what a kill left in `stack.json` may be anybody's now."""
    stack = read_stack(folder)
    return stack.broker_pid if stack and is_claimed(folder / "broker" / "lock") else None


def _check_space(store: Path, to: Path) -> None:
    needed = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    free = shutil.disk_usage(to).free
    if free < needed * 1.1:
        raise ConfigError(f"{to} has {free / 1e6:.0f} MB free, the backup needs {needed / 1e6:.0f} MB")


def _copy_changed(source: Path, target: Path, copied: dict[Path, tuple[int, int]]) -> int:
    """Make the target what the source is, but for what is known to be the same: by size and time of change.

    Clocks of file systems are coarse: what was changed just before it was copied may change again unnoticed.

    Returns:
        How many bytes were copied.
    """
    size = 0
    there: set[Path] = set()
    began = time.time_ns()
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        with contextlib.suppress(FileNotFoundError):  # the broker removes blocks, too
            if path.is_dir():
                (target / name).mkdir(parents=True, exist_ok=True, mode=0o700)
                continue
            stat = path.stat()
            if copied.get(name) != (stat.st_size, stat.st_mtime_ns):
                (target / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                shutil.copyfile(path, target / name)
                size += stat.st_size
                settled = stat.st_mtime_ns < began - COARSE_NS
                copied[name] = (stat.st_size, stat.st_mtime_ns if settled else 0)
            there.add(name)
    for name in copied.keys() - there:
        (target / name).unlink(missing_ok=True)
        del copied[name]
    return size


def _digest(path: Path) -> KeptFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return KeptFile(bytes=file.tell(), sha256=digest)


@contextmanager
def _stopped(pid: int | None) -> Iterator[None]:
    """Have a process stand still over a block. Should we be killed meanwhile, its supervisor ends it."""
    if pid is None:
        yield
        return
    try:
        os.kill(pid, signal.SIGSTOP)
    except OSError as error:
        raise ConfigError(f"the broker, process {pid}, cannot be stopped for a moment: {error}") from error
    try:
        deadline = time.monotonic() + STOP_S
        while not _stands_still(pid):
            if time.monotonic() > deadline:
                raise ConfigError(f"the broker, process {pid}, did not stop within {STOP_S:g} s")
            time.sleep(0.001)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "TtZ"
    except FileNotFoundError:
        asked = ["ps", "-o", "state=", "-p", str(pid)]
        state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return not state or state[0] in "TZ"
