"""One child process that speaks JSON lines: its pipes, its last words, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fedbus.base.errors import ChildDied

LAST_WORDS = 50
MAX_WORD = 500
MAX_REPLY = 64 * 2**20
# A process may be gone while one that it left behind still holds its pipes.
DRAIN_S = 1.0
_STDOUT, _STDERR = 1, 2
_WHY = {
    signal.SIGKILL: " (out of memory?)",
    signal.SIGBUS: " (no space left on the disk?)",
    signal.SIGILL: " (does its build fit this processor?)",
}

log = logging.getLogger(__name__)


class ChildLink(asyncio.SubprocessProtocol):
    """A process in its own session. It dies as a group, so that nothing it started is left behind.

    asyncio's own `Process.wait` also waits for the pipes from Python 3.12 on, which a
    process left behind can hold open; hence a protocol.
    """

    def __init__(self) -> None:
        self._replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closed = asyncio.Event()
        self._part = bytearray()
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._word = b""
        self._reason: str | None = None
        self._transport: asyncio.SubprocessTransport

    @classmethod
    async def open(cls, command: Sequence[str], environment: Mapping[str, str]) -> ChildLink:
        """Start the process.

        Raises:
            OSError: there is no such program.
        """
        loop = asyncio.get_running_loop()
        _, link = await loop.subprocess_exec(cls, *command, env=dict(environment), start_new_session=True)
        return link

    @property
    def pid(self) -> int:
        """Process id."""
        return self._transport.get_pid()

    @property
    def exited(self) -> bool:
        """Whether the process has ended, or was told to."""
        return self._reason is not None or self._transport.get_returncode() is not None

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line."""
        pipe = self._transport.get_pipe_transport(0)
        if isinstance(pipe, asyncio.WriteTransport) and not pipe.is_closing():
            pipe.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Read one line.

        Raises:
            ChildDied: the process ended, or said something else.
        """
        line = await self._replies.get()
        if line is None:
            self._replies.put_nowait(None)  # it stays dead
            raise self._death()
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            self.kill("the trainer process broke the protocol")
            raise self._death() from None
        return reply

    def kill(self, reason: str) -> None:
        """Kill the process and all that it started."""
        if self._reason is None and self._transport.get_returncode() is None:
            self._reason = reason
        self._kill_group()

    def finish(self) -> None:
        """End its input, which asks it to exit."""
        pipe = self._transport.get_pipe_transport(0)
        if pipe is not None:
            pipe.close()

    async def closed(self) -> None:
        """Wait until the process has ended and its pipes are read."""
        await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It said something."""
        if fd == _STDERR:
            self._hear(data)
            return
        self._part += data
        if b"\n" in data:
            *lines, rest = self._part.split(b"\n")
            self._part = bytearray(rest)
            for line in lines:
                self._replies.put_nowait(bytes(line))
        elif len(self._part) > MAX_REPLY:
            self.kill("the trainer process broke the protocol: a reply has no end")

    def process_exited(self) -> None:
        """It is gone; what it leaves behind goes too."""
        self._kill_group()
        asyncio.get_running_loop().call_later(DRAIN_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and all that it said was read."""
        self._close()

    def _close(self) -> None:
        if not self._closed.is_set():
            self._hear(b"\n")
            self._closed.set()
            self._replies.put_nowait(None)
            self._transport.close()

    def _kill_group(self) -> None:
        # The process leads a session of its own, so its group has its id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), signal.SIGKILL)

    def _hear(self, data: bytes) -> None:
        """Keep the last lines of stderr; a progress bar redraws with carriage returns."""
        *words, self._word = (self._word + data).replace(b"\r", b"\n").split(b"\n")
        self._word = self._word[-MAX_WORD:]
        for word in words:
            if text := word[-MAX_WORD:].decode(errors="replace").rstrip():
                self._words.append(text)
                log.info("trainer %d: %s", self.pid, text)

    def _death(self) -> ChildDied:
        reason = self._reason or f"the trainer process {_ending(self._transport.get_returncode())}"
        if self._reason is None and self._words:
            reason += f": {self._words[-1]}"
        return ChildDied(reason, hint="\n".join(self._words) or None)


def _ending(code: int | None) -> str:
    if code is None:
        return "closed its pipes"
    if code >= 0:
        return f"exited with code {code}"
    number = signal.Signals(-code)
    return f"was killed by {number.name}{_WHY.get(number, '')}"
