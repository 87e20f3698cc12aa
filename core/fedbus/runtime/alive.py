"""Signs of life, by the protocol of systemd's sd_notify(3): what hangs says nothing, and can be ended.

A process that was told of a socket (`NOTIFY_SOCKET`) sends a datagram from its event loop, twice in the time
(`WATCHDOG_USEC`) after which it is taken to hang. So under `Type=notify` and `WatchdogSec=` systemd does the
same for a service that it runs itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path

SILENT_S = 15.0  # longer than a disk that is busy keeps a service from its event loop
SIGN = b"WATCHDOG=1"
READY = b"READY=1"
_SOCKET, _AFTER, _WHOSE = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


async def keep_saying_alive() -> None:
    """Give signs of life to whoever asked for them, until cancelled; nobody may have."""
    address, after = os.environ.get(_SOCKET, ""), os.environ.get(_AFTER, "")
    if not address or os.environ.get(_WHOSE, str(os.getpid())) != str(os.getpid()):
        return
    every = int(after) / 2e6 if after.isdigit() and int(after) else None
    where = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        say = READY
        while True:
            with contextlib.suppress(OSError):  # it reads later, or is gone
                out.sendto(say, where)
            if every is None:
                return
            say = SIGN
            await asyncio.sleep(every)


class Signs:
    """The other end: a socket for each process that is watched."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self._folder: str | None = None

    def environment(self, name: str) -> dict[str, str]:
        """What a process is told when it is started, or started again."""
        self.forget(name)
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.setblocking(False)
        token = secrets.token_hex(8)
        if sys.platform.startswith("linux"):
            address = f"@fedbus-{token}"  # no file: a kill leaves nothing behind
            heard.bind(f"\0{address[1:]}")
        else:
            self._folder = self._folder or tempfile.mkdtemp(prefix="fedbus-")
            address = str(Path(self._folder) / token)
            heard.bind(address)
        self._sockets[name] = heard
        return {_SOCKET: address, _AFTER: str(int(SILENT_S * 1e6))}

    def heard(self) -> set[str]:
        """Processes that gave a sign since the last time."""
        found = set()
        for name, each in list(self._sockets.items()):
            with contextlib.suppress(OSError):  # nothing is there, or it was closed meanwhile
                while each.recv(64):
                    found.add(name)
        return found

    def forget(self, name: str) -> None:
        """No longer listen to a process."""
        if (before := self._sockets.pop(name, None)) is not None:
            before.close()

    def close(self) -> None:
        """Listen to nobody any more."""
        for name in list(self._sockets):
            self.forget(name)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def without_signs(environment: dict[str, str]) -> dict[str, str]:
    """An environment without what our own supervisor wants to hear from us."""
    return {key: value for key, value in environment.items() if key not in (_SOCKET, _AFTER, _WHOSE)}
