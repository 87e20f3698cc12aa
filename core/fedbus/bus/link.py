"""One connection of nats-py from greeting to end: it never reconnects, and its end is always noticed.

nats-py writes what is unsent once more while it closes. On a dead link that write raises,
or never returns, and the client's `closed_cb` is never called. Here such a write returns
quietly, closing takes a bounded time, and a link on which no byte moves is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from fedbus.base.errors import AuthRefused, BusUnavailable
from fedbus.bus.credentials import Credentials

CONNECT_TIMEOUT_S = 5.0
CLOSE_S, CLOSE_TRIES = 1.0, 5
PING_S = 5.0  # how often the broker is asked for a sign of life
STALE_S = 15.0  # a link on which no byte moved for so long is dead; a slow one moves
# Above two upload windows of 16 MiB, so that a publish never blocks on the client's own buffer.
PENDING_BYTES = 64 << 20
_NEVER_S = 1 << 30


class Wire(TcpTransport):
    """One connection's stream."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py annotates its constructors only in part
        self._received = self._written = 0
        self._broken = False

    def __bool__(self) -> bool:
        """nats-py puts a stream of its own in the place of one that is false."""
        return True

    @property
    def moved(self) -> tuple[int, int]:
        """Changes while bytes come in, or go out that had to wait; a lone PING that leaves proves nothing."""
        unsent = self._io_writer.transport.get_write_buffer_size() if self._io_writer else 0
        return self._received, self._written - unsent if unsent else 0

    def abort(self) -> None:
        """Cut the connection now; what is unsent is lost."""
        self._broken = True
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def write(self, payload: bytes) -> None:
        """Take bytes to send."""
        self._written += len(payload)
        super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        """Take several pieces to send."""
        self._written += sum(map(len, payload))
        super().writelines(payload)  # type: ignore[no-untyped-call]

    async def read(self, buffer_size: int) -> bytes:
        """Read some bytes; none at the end."""
        try:
            data: bytes = await super().read(buffer_size)
        except OSError:
            self._broken = True
            raise
        self._received += len(data)
        self._broken = self._broken or not data
        return data

    async def drain(self) -> None:
        """Wait until there is room for more. Raises for the first failure only."""
        try:
            await super().drain()  # type: ignore[no-untyped-call]
        except OSError:
            if not self._broken:
                self._broken = True
                raise

    async def wait_closed(self) -> None:
        """Wait until what is unsent has gone out; give up when it stops moving, and after a few seconds."""
        closing = asyncio.get_running_loop().create_task(super().wait_closed())  # type: ignore[no-untyped-call]
        try:
            for _ in range(CLOSE_TRIES):
                before = self.moved
                await asyncio.wait({closing}, timeout=CLOSE_S)
                if closing.done() or self.moved == before:
                    break
        finally:
            if not closing.done():
                self.abort()
        await asyncio.gather(closing, return_exceptions=True)


class Link:
    """A live connection, once `open` has returned.

    Args:
        credentials: where and as whom.
        name: shown in the broker's monitoring.
        ended: called when the connection is over, for whatever reason; more than once perhaps.
        failed: called with what the broker or nats-py reports.
    """

    def __init__(
        self,
        credentials: Credentials,
        name: str,
        ended: Callable[[Link], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.client = Client()
        self._wire = self.client._transport = Wire()
        self._credentials = credentials
        self._name = name
        self._ended = ended
        self._failed = failed

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            AuthRefused: the broker refuses the credential.
            BusUnavailable: it cannot be reached.
        """
        reported: list[Exception] = []

        async def closed() -> None:
            self._ended(self)

        async def failed(error: Exception) -> None:
            reported.append(error)
            self._failed(error)

        mine = self._credentials
        try:
            await self.client.connect(
                mine.url,
                user=mine.user,
                password=mine.password,
                inbox_prefix=mine.inbox_prefix,
                name=self._name,
                allow_reconnect=False,
                # Or nats-py tries an absent broker by itself, every 2 s, 60 times.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=int(CONNECT_TIMEOUT_S),
                pending_size=PENDING_BYTES,
                ping_interval=_NEVER_S,  # `watch` does this
                closed_cb=closed,
                error_cb=failed,
            )
            if not self.client.is_connected:
                raise BusUnavailable(f"{mine.url} closed the connection")
        except (nats.errors.Error, OSError, TimeoutError) as error:
            absent = isinstance(error, nats.errors.NoServersError) and reported
            cause = reported[0] if absent else error
            if "authorization violation" in str(cause).lower():
                raise AuthRefused(f"{mine.url} refuses the credential of {mine.name}") from error
            raise BusUnavailable(f"{mine.url}: {cause or type(cause).__name__}") from error

    async def round_trips(self) -> None:
        """Return when the broker has processed what was sent. Never to be cancelled while the link lives.

        A PONG that finds its waiter cancelled kills nats-py's reader, without a word.
        """
        # nats-py writes the PING straight to the socket, past publishes that wait for its flusher
        # task: the first round trip lets that task run, the second proves that the broker read on.
        for _ in range(2):
            await self.client.flush(timeout=_NEVER_S)

    async def watch(self) -> None:
        """Return when the link is over; cut it when nothing moves though a PING is under way."""
        loop = asyncio.get_running_loop()
        moved, since = (0, 0), loop.time()
        while not self.client.is_closed and loop.time() - since < STALE_S:
            await self.client._send_ping()
            await asyncio.sleep(PING_S)
            if moved != self._wire.moved:
                moved, since = self._wire.moved, loop.time()
        self._wire.abort()
        self._ended(self)

    async def close(self, *, abort: bool = False) -> None:
        """End it; `abort` drops what is unsent."""
        if abort:
            self._wire.abort()
        await self.client.close()
