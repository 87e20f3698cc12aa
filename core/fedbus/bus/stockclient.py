"""nats-py's client with our parser. Its own ends at a subject or header that is no text, and is deaf then.

Any worker may write such. It also cuts a subject at white space that the broker takes for a part of it.
"""

from __future__ import annotations

import json

from fedbus_schemas.base import Payload
from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from fedbus.bus import wire


class StockClient(Client):
    """Takes what any peer wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = StockParser(self)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return wire.parse_headers(headers) or None


class StockParser(Parser):
    """Feeds `wire.Reader`, and tells the client in order what it found."""

    def __init__(self, client: StockClient) -> None:
        self._client = client
        self._found: list[tuple[int, str, str, bytes, Payload] | tuple[bytes, bytes]] = []
        super().__init__(client)

    def reset(self) -> None:
        """Begin with a new connection."""
        self._found.clear()
        self._reader = wire.Reader(
            lambda *message: self._found.append(message), lambda *control: self._found.append(control)
        )

    async def parse(self, data: bytes = b"") -> None:
        """Take what was received.

        Raises:
            ProtocolError: it is not NATS.
        """
        left = memoryview(data)
        while left:
            room = self._reader.buffer()
            count = min(len(room), len(left))
            room[:count] = left[:count]
            left = left[count:]
            try:
                self._reader.received(count)
            except wire.ProtocolError as error:
                raise ProtocolError(str(error)) from error
            found, self._found = self._found, []
            for each in found:
                await self._tell(each)

    async def _tell(self, found: tuple[int, str, str, bytes, Payload] | tuple[bytes, bytes]) -> None:
        if len(found) == 5:
            sid, subject, reply, block, payload = found
            await self._client._process_msg(sid, subject.encode(), reply.encode(), bytes(payload), block)
            return
        verb, rest = found
        if verb == b"PING":
            await self._client._process_ping()
        elif verb == b"PONG":
            await self._client._process_pong()
        elif verb == b"-ERR":
            await self._client._process_err(rest.decode(errors="replace").lower())
        elif verb == b"INFO":
            try:
                await self._client._process_info(dict(json.loads(rest)))
            except (ValueError, TypeError) as error:
                raise ProtocolError(f"unreadable greeting: {error}") from error
        elif verb != b"+OK":
            raise ProtocolError(f"unknown verb {verb[:20]!r}")
