"""The byte stream under nats-py: TLS where it is wanted, a count of what moves, and an end without surprises.

nats-py writes what is unsent once more while it closes. On a dead link that write raises,
or never returns, and the client's `closed_cb` is never called. Here such a write returns
quietly, and closing takes a bounded time. nats-py never hears of TLS: it does not ask for it
where the url demands it and the broker has none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

from fedbus.base.errors import BusUnavailable
from fedbus.bus import tls, wire
from fedbus.bus.credentials import Credentials


class Stream(TcpTransport):
    """One connection's stream.

    Args:
        credentials: whose TLS settings count.
        wait_sent: waits for a closing that may never end.
    """

    def __init__(
        self, credentials: Credentials, wait_sent: Callable[[asyncio.Future[None]], Awaitable[None]]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py annotates its constructors only in part
        self._credentials = credentials
        self._wait_sent = wait_sent
        self._received = self._written = 0
        self._broken = False
        self._greeted = False
        self._tls: tls.Tls | None = None
        self._plain = bytearray()  # decrypted, and not yet read
        self._room = memoryview(bytearray(wire.BUFFER))

    def __bool__(self) -> bool:
        """nats-py puts a stream of its own in the place of one that is false."""
        return True

    @property
    def moved(self) -> tuple[int, int]:
        """What `Link.moved` says."""
        unsent = self._io_writer.transport.get_write_buffer_size() if self._io_writer else 0
        return self._received, self._written - unsent if unsent else 0

    def abort(self) -> None:
        """Cut the connection now; what is unsent is lost."""
        self._broken = True
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Dial."""
        self._greeted, self._tls = False, None
        self._plain.clear()
        await super().connect(uri, buffer_size, connect_timeout)

    def write(self, payload: bytes) -> None:
        """Take bytes to send."""
        self._send(payload if self._tls is None else self._tls.encrypt(payload))

    def writelines(self, payload: list[bytes]) -> None:
        """Take several pieces to send."""
        if self._tls is not None:
            self._send(self._tls.encrypt(*payload))
        else:
            self._written += sum(map(len, payload))
            super().writelines(payload)  # type: ignore[no-untyped-call]

    async def readline(self) -> bytes:
        """Read a line: the greeting, and later the answer to the login."""
        if not self._greeted:
            self._greeted = True
            return await self._greeting(await super().readline())  # type: ignore[no-untyped-call]
        if self._tls is None:
            line: bytes = await super().readline()  # type: ignore[no-untyped-call]
            return line
        while wire.END not in self._plain and await self._more(self._tls):
            pass
        end = self._plain.find(wire.END)
        return self._take(len(self._plain) if end < 0 else end + len(wire.END))

    async def read(self, buffer_size: int) -> bytes:
        """Read some bytes; none at the end."""
        if self._tls is None:
            return await self._receive(buffer_size)
        while not self._plain and await self._more(self._tls):
            pass
        return self._take(len(self._plain))

    def at_eof(self) -> bool:
        """Whether nothing more will come."""
        return not self._plain and bool(super().at_eof())  # type: ignore[no-untyped-call]

    async def drain(self) -> None:
        """Wait until there is room for more. Raises for the first failure only."""
        try:
            await super().drain()  # type: ignore[no-untyped-call]
        except OSError:
            if not self._broken:
                self._broken = True
                raise

    def close(self) -> None:
        """Send what is unsent, and end."""
        if self._tls is not None and not self._broken:
            self._send(self._tls.farewell())
        super().close()  # type: ignore[no-untyped-call]

    async def wait_closed(self) -> None:
        """Wait until what is unsent has gone out, for a bounded time."""
        await self._wait_sent(asyncio.ensure_future(super().wait_closed()))  # type: ignore[no-untyped-call]

    async def _greeting(self, line: bytes) -> bytes:
        """Begin TLS where it is wanted; returns the greeting, without a word of TLS then."""
        verb, _, rest = line.partition(b" ")
        if verb != b"INFO":
            return line
        try:
            info = dict(json.loads(rest))
        except (ValueError, TypeError) as error:
            raise BusUnavailable(f"{self._credentials.url} does not speak NATS: {error}") from error
        if not tls.is_wanted(self._credentials, info):
            return line
        cipher = tls.Tls(self._credentials)
        try:
            while not cipher.shake():
                self._send(cipher.unsent())
                data = await self._receive(wire.BUFFER)
                if not data:
                    raise BusUnavailable(f"{self._credentials.url} closed the connection")
                cipher.received(data)
        finally:
            self._send(cipher.unsent())
        self._tls = cipher
        return b"INFO " + json.dumps({**info, "tls_required": False}).encode() + wire.END

    async def _more(self, cipher: tls.Tls) -> bool:
        """Receive and decrypt; False at the end."""
        data = await self._receive(wire.BUFFER)
        cipher.received(data)
        try:
            while count := cipher.read(self._room):
                self._plain += self._room[:count]
        except BusUnavailable as error:
            self._broken = True
            raise ConnectionError(error.message) from error  # what nats-py takes for a broken link
        if answer := cipher.unsent():
            self._send(answer)
        return bool(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._plain[:count])
        del self._plain[:count]
        return taken

    async def _receive(self, most: int) -> bytes:
        try:
            data: bytes = await super().read(most)
        except OSError:
            self._broken = True
            raise
        self._received += len(data)
        self._broken = self._broken or not data
        return data

    def _send(self, data: bytes) -> None:
        self._written += len(data)
        super().write(data)  # type: ignore[no-untyped-call]
