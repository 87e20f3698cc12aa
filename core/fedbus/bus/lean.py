"""The link that speaks the protocol itself: a reply reaches its waiter in the call that received it.

Measured against nats-py in docs/benchmarks.md. There is no queue, no task and no copy of a large
payload between the socket and a subscriber, and a publish is written at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from fedbus_schemas.base import Payload

from fedbus.base.errors import BusUnavailable, FedbusError
from fedbus.bus import tls, wire
from fedbus.bus.credentials import Credentials
from fedbus.bus.link import CONNECT_TIMEOUT_S, Deliver, Link
from fedbus.bus.replies import Message

log = logging.getLogger(__name__)

# Bytes that may wait in this process before a publish waits.
UNSENT_BYTES = 2 << 20
# Up to here a message is copied into one piece: three writes would wake the broker three times.
JOINED_BYTES = 256 << 10


class LeanLink(Link, asyncio.BufferedProtocol):
    """A connection over one asyncio transport."""

    def __init__(
        self,
        credentials: Credentials,
        name: str,
        ended: Callable[[Link], None],
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(credentials, name, ended, failed)
        loop = asyncio.get_running_loop()
        self._reader = wire.Reader(self._on_message, self._on_control)
        self._transport: asyncio.Transport | None = None
        self._deliver: dict[int, Deliver] = {}
        self._last_sid = 0
        self._info: dict[str, Any] = {}
        self._tls: tls.Tls | None = None
        self._sealed = memoryview(b"")  # what comes from the socket, where that is not what is read
        self._greeted: asyncio.Future[None] = loop.create_future()  # and safe, where that is wanted
        self._gone: asyncio.Future[None] = loop.create_future()
        self._pongs: deque[asyncio.Future[None] | None] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._why: FedbusError | None = None  # it is over
        self._ending = False  # our half is closed
        self._received = self._written = 0

    # What a link does

    @property
    def closed(self) -> bool:
        return self._gone.done()

    @property
    def max_payload(self) -> int:
        return int(self._info["max_payload"])

    @property
    def server_version(self) -> str:
        return str(self._info["version"])

    @property
    def moved(self) -> tuple[int, int]:
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        return self._received, self._written - unsent if unsent else 0

    async def open(self) -> None:
        mine = self._credentials
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self, mine.host, mine.port)
                await self._greeted
                self._write(wire.connect(self._login()))
                await self.round_trip()
        except TimeoutError:
            raise BusUnavailable(f"{mine.url}: no answer in {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise BusUnavailable(f"{mine.url}: {error}") from error

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        if not self._room.is_set():
            await self._room.wait()
        head = wire.publish(subject, len(data), reply, headers)
        if len(data) < JOINED_BYTES:
            self._write(b"".join((head, data, wire.END)))
        else:
            self._write(head, data, wire.END)

    async def subscribe(self, subject: str, deliver: Deliver, queue: str = "") -> int:
        self._last_sid += 1
        sid = self._last_sid
        self._write(wire.subscribe(subject, sid, queue))
        self._deliver[sid] = deliver
        return sid

    async def unsubscribe(self, sid: int) -> None:
        if self._deliver.pop(sid, None) is not None:
            with contextlib.suppress(BusUnavailable):
                self._write(wire.unsubscribe(sid))

    async def round_trip(self) -> None:
        pong = asyncio.get_running_loop().create_future()
        self._write(wire.PING)
        self._pongs.append(pong)
        await pong

    async def close(self) -> None:
        if self._transport is not None and not self._gone.done():
            # We end our half, and the broker, once it has read all of it, the other. To close the socket
            # while something unread lies in it would throw away what is still on its way out.
            if not self._ending and not self._transport.is_closing():
                self._ending = True
                if self._tls is not None:
                    self._transport.write(self._tls.farewell())
                self._transport.write_eof()
            await self._wait_sent(self._gone)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _ping(self) -> None:
        with contextlib.suppress(BusUnavailable):
            self._write(wire.PING)
            self._pongs.append(None)

    def _login(self) -> dict[str, Any]:
        return {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "fedbus",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": self._name,
            "user": self._credentials.user,
            "pass": self._credentials.password,
        }

    def _write(self, *parts: bytes) -> None:
        if self._transport is None or self._ending or self._gone.done() or self._transport.is_closing():
            raise BusUnavailable("the connection to the broker is over")
        for part in parts if self._tls is None else (self._tls.encrypt(*parts),):
            self._written += len(part)
            self._transport.write(part)

    # What the broker sends

    def _on_message(self, sid: int, subject: str, reply: str, block: bytes, data: Payload) -> None:
        deliver = self._deliver.get(sid)
        if deliver is not None:
            deliver(Message(subject, data, wire.parse_headers(block), reply))

    def _on_control(self, verb: bytes, rest: bytes) -> None:
        if verb == b"PING":
            with contextlib.suppress(BusUnavailable):
                self._write(wire.PONG)
        elif verb == b"PONG":
            if self._pongs and (pong := self._pongs.popleft()) is not None and not pong.done():
                pong.set_result(None)
        elif verb == b"INFO":
            # The broker repeats it when its cluster changes.
            self._info = dict(json.loads(rest))
            if not self._greeted.done():
                if tls.is_wanted(self._credentials, self._info):
                    self._secure()
                else:
                    self._greeted.set_result(None)
        elif verb == b"-ERR":
            text = rest.decode(errors="replace").strip("' ")
            self._why = self._refusal(text) or self._why
            self._failed(BusUnavailable(text))
        elif verb != b"+OK":
            raise wire.ProtocolError(f"unknown verb {verb[:20]!r}")

    def _secure(self) -> None:
        """Speak TLS from here on. What came in clear text behind the greeting is not read as such."""
        self._tls = tls.Tls(self._credentials)
        self._sealed = memoryview(bytearray(wire.BUFFER))
        self._tls.received(self._reader.take_rest())
        self._unseal()

    def _unseal(self) -> None:
        assert self._tls is not None
        assert self._transport is not None
        try:
            if not self._greeted.done() and self._tls.shake():
                self._greeted.set_result(None)
            if self._greeted.done():
                while count := self._tls.read(self._reader.buffer()):
                    self._reader.received(count)
        finally:
            if answer := self._tls.unsent():
                self._transport.write(answer)

    def _give_up(self, why: FedbusError) -> None:
        if self._greeted.done():  # else `open` raises it
            log.warning("%s", why)
        self._why = self._why or why
        self.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._reader.buffer() if self._tls is None else self._sealed

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._received += nbytes
        try:
            if self._tls is None:
                self._reader.received(nbytes)
            elif not self._ending:  # a cipher that said farewell reads no more
                self._tls.received(self._sealed[:nbytes])
                self._unseal()
        except FedbusError as error:
            self._give_up(error)
        except (wire.ProtocolError, ValueError, KeyError, TypeError) as error:
            self._give_up(BusUnavailable(f"{self._credentials.url} does not speak NATS: {error}"))

    def pause_writing(self) -> None:
        """Much is unsent."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Enough went out."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        if self._gone.done():
            return
        self._gone.set_result(None)
        self._room.set()
        closed = f"{self._credentials.url} closed the connection{f': {exc}' if exc else ''}"
        over = self._why or BusUnavailable(closed)
        for wait in (self._greeted, *self._pongs):
            if wait is not None and not wait.done():
                wait.set_exception(over)
                wait.exception()  # seen, even where nobody waits for it any more
        self._pongs.clear()
        self._ended(self)
