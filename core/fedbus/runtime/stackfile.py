"""A stack's folder: where its files are, what `stack.json` remembers, and the locks that guard both."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedbus.base.errors import ConfigError, describe
from fedbus.bus.credentials import write_private
from fedbus.runtime.claim import is_claimed

STACK_FILE = "stack.json"
STACK_LOCK = ".stack.lock"


class StackFile(BaseModel):
    """What a stack remembers between starts, and tells other processes of this machine.

    Attributes:
        url: where the broker listens; the same after each start.
        broker_pid: the broker's process while it runs, else None.
        max_file: bytes that the broker may store.
        processes: process ids of what else runs in the stack, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, StringConstraints(pattern=r"^nats://\S+:\d+$")]
    broker_pid: int | None = None
    max_file: int = Field(ge=0)
    processes: dict[str, int] = {}

    def save(self, folder: Path) -> None:
        """Write `stack.json`, whole or not at all."""
        write_private(folder / STACK_FILE, self.model_dump_json(indent=2) + "\n")


def read_stack(folder: Path) -> StackFile | None:
    """What `stack.json` says, or None where no broker was ever started.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / STACK_FILE
    try:
        return StackFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(f"{path} is damaged: {describe(error, StackFile.model_fields)}") from error


def is_running(folder: Path) -> bool:
    """Whether a broker, or whoever starts it again when it dies, lives in a folder."""
    return is_claimed(folder / STACK_LOCK) or is_claimed(folder / "broker" / "lock")


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter; one that exists is left as it is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file over a block; other processes and threads wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
