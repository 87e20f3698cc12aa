"""The link over nats-py, the official client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from fedbus.base.errors import BusUnavailable
from fedbus.bus.credentials import Credentials, bracketed
from fedbus.bus.link import CONNECT_TIMEOUT_S, Deliver, Link
from fedbus.bus.replies import Message
from fedbus.bus.stockclient import StockClient
from fedbus.bus.stockstream import Stream

# Above two upload windows of 16 MiB, so that a publish never blocks on the client's own buffer.
PENDING_BYTES = 64 << 20
_NEVER_S = 1 << 30


class StockLink(Link):
    """A connection of nats-py's client, whose own reconnecting is off."""

    def __init__(
        self,
        credentials: Credentials,
        name: str,
        ended: Callable[[Link], None],
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(credentials, name, ended, failed)
        self.client = StockClient()
        self._stream = self.client._transport = Stream(self._credentials, self._wait_sent)
        self._subscriptions: dict[int, Subscription] = {}

    @property
    def closed(self) -> bool:
        return not self.client.is_connected

    @property
    def max_payload(self) -> int:
        return self.client.max_payload

    @property
    def server_version(self) -> str:
        return str(self.client._server_info["version"])

    @property
    def moved(self) -> tuple[int, int]:
        return self._stream.moved

    async def open(self) -> None:
        reported: list[Exception] = []

        async def closed() -> None:
            self._ended(self)

        async def failed(error: Exception) -> None:
            reported.append(error)
            self._failed(error)

        mine = self._credentials
        try:
            await self.client.connect(
                f"nats://{bracketed(mine.host)}:{mine.port}",  # TLS is the stream's
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
            missing = BusUnavailable(f"{mine.url}: {cause or type(cause).__name__}")
            raise self._refusal(str(cause)) or missing from error

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        try:
            # A fresh dict each time: nats-py changes the one that it is given.
            await self.client.publish(subject, data, reply=reply, headers=dict(headers) if headers else None)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"publish to {subject} failed: {error}") from error

    async def subscribe(self, subject: str, deliver: Deliver, queue: str = "") -> int:
        async def take(msg: Msg) -> None:
            deliver(Message(msg.subject, msg.data, msg.headers or {}, msg.reply))

        try:
            # No client-side limit: nats-py would drop messages over it and tell only its error callback.
            made = await self.client.subscribe(
                subject, queue=queue, cb=take, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except nats.errors.Error as error:
            raise BusUnavailable(f"could not subscribe to {subject}: {error}") from error
        self._subscriptions[made._id] = made
        return made._id

    async def unsubscribe(self, sid: int) -> None:
        if made := self._subscriptions.pop(sid, None):
            with contextlib.suppress(nats.errors.Error, OSError):
                await made.unsubscribe()

    async def round_trip(self) -> None:
        # A PONG that finds its waiter cancelled kills nats-py's reader, without a word.
        # nats-py writes the PING straight to the socket, past publishes that wait for its flusher
        # task: the first round trip lets that task run, the second proves that the broker read on.
        for _ in range(2):
            await self.client.flush(timeout=_NEVER_S)

    async def close(self) -> None:
        await self.client.close()

    def abort(self) -> None:
        self._stream.abort()

    async def _ping(self) -> None:
        await self.client._send_ping()
