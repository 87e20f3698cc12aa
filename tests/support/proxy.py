"""A TCP proxy between a client and the broker, whose links can be cut, stalled or slowed down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fedbus.bus.credentials import Credentials


class Proxy:
    """Forwards bytes both ways while `flowing` is set.

    Args:
        target: the broker's `nats://host:port`.
        rate: most bytes per second towards the broker; None: as fast as they come.
    """

    def __init__(self, target: str, rate: float | None = None) -> None:
        self._target = urlsplit(target)
        self._rate = rate
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.links = 0  # accepted so far
        self.flowing = asyncio.Event()
        self.answering = asyncio.Event()  # while not set, nothing comes back from the broker
        self.flowing.set()
        self.answering.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 16)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new links and cut the present ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset every link."""
        for writer in list(self._writers):
            writer.transport.abort()

    def inject(self, data: bytes) -> None:
        """Write bytes of our own towards every client and every broker."""
        for writer in list(self._writers):
            writer.write(data)

    def credentials(self, of: Credentials) -> Credentials:
        """The same identity, by way of this proxy."""
        return of.model_copy(update={"url": f"{urlsplit(of.url).scheme}://127.0.0.1:{self.port}"})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links += 1
        try:
            other_reader, other_writer = await asyncio.open_connection(
                self._target.hostname, self._target.port, limit=1 << 16
            )
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, other_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, other_writer, self._rate))
                group.create_task(self._pump(other_reader, writer, None, self.answering))
        except* OSError:
            pass
        finally:
            for each in ends:
                each.transport.abort()
            self._writers -= ends

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rate: float | None,
        gate: asyncio.Event | None = None,
    ) -> None:
        while data := await reader.read(1 << 14):
            await self.flowing.wait()
            await (gate or self.flowing).wait()
            if rate:
                await asyncio.sleep(len(data) / rate)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("one end closed; so does the other")


@asynccontextmanager
async def proxy(target: str, rate: float | None = None) -> AsyncIterator[Proxy]:
    """A proxy that runs over the block."""
    own = Proxy(target, rate)
    await own.start()
    try:
        yield own
    finally:
        await own.stop()
