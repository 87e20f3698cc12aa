"""Real brokers for tests: one for the session (the `stack` fixture), or one for a test that kills it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fedbus.bus.credentials import Credentials
from fedbus.runtime.broker import Broker, add_worker
from fedbus.runtime.rights import IDENTITIES


@dataclass(frozen=True, slots=True)
class Stack:
    """A broker that runs in a folder, and everyone's credentials."""

    broker: Broker

    @property
    def url(self) -> str:
        return self.broker.url

    @property
    def folder(self) -> Path:
        return self.broker.folder

    def credentials(self, name: str) -> Credentials:
        """Credentials of a service or the operator; any other name is a worker, added at first use."""
        if name in IDENTITIES:
            return self.broker.accounts.credentials(name)
        return add_worker(self.folder, name)

    def kill(self) -> None:
        """SIGKILL the server, and return when it is gone."""
        os.kill(self.broker.pid, signal.SIGKILL)
        wait_until(lambda: not self.broker.running(), "the killed broker is gone")

    def restart(self) -> None:
        """Start the server again after `kill`; same address, same data."""
        self.broker.start()


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[Stack]:
    """A broker for one test, in `folder/stack`."""
    own = Broker(folder / "stack")
    await asyncio.to_thread(own.start)
    try:
        yield Stack(own)
    finally:
        await asyncio.to_thread(own.stop)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Poll until the condition holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
