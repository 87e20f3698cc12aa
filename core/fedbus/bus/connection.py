"""One supervised connection to the broker.

nats-py's own reconnecting is switched off: it gives up for good on most server errors,
never returns from a first connect that fails, and leaves in-flight work pending. Here a
lost connection fails every pending request at once (retryable), and one loop opens a new
client for as long as it takes, with jittered back-off, and renews every subscription.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from fedbus.base.errors import AuthRefused, BusError, BusUnavailable, NotAcked, PayloadTooLarge
from fedbus.bus.credentials import Credentials

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 5.0
BACKOFF_S = (0.05, 2.0)  # first and longest pause between tries, before jitter
# What the broker counts against max_payload besides the payload: our headers take under 300 bytes.
HEADER_ROOM = 4096
# Above two upload windows of 16 MiB, so that a publish never blocks on the client's own buffer.
PENDING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """A received message."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    reply: str = ""

    @property
    def status(self) -> str | None:
        """Status of a server's reply without payload, such as 404."""
        return self.headers.get("Status")


Callback = Callable[[Message], None]
Hook = Callable[[], Awaitable[None]]


class Bus:
    """A connection that comes back by itself. Make it with `Bus.connect`."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self.credentials = credentials
        self._name = name
        self._nc: Client | None = None
        self._up = asyncio.Event()
        self._closing = False
        self._inbox = ""
        self._reopening: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._subscriptions: dict[str, Callback] = {}
        self._hooks: list[Hook] = []
        self._pending: dict[str, tuple[str, asyncio.Future[Message]]] = {}
        self._parts: dict[str, list[Message]] = {}
        self._numbers = count(1)
        self.last_error: str | None = None

    @classmethod
    async def connect(
        cls, credentials: Credentials, *, name: str | None = None, wait_s: float | None = 10.0
    ) -> Bus:
        """Connect.

        Args:
            credentials: where and as whom.
            name: shown in the broker's monitoring; the identity by default.
            wait_s: how long to try an absent broker; None: as long as it takes.

        Raises:
            AuthRefused: the broker refuses the credential.
            BusUnavailable: the broker was not reached in `wait_s`.
        """
        bus = cls(credentials, name or credentials.name)
        try:
            await asyncio.wait_for(bus._open_with_backoff(refused_is_final=wait_s is not None), wait_s)
        except TimeoutError:
            raise BusUnavailable(
                f"no broker at {credentials.url} within {wait_s:g} s: {bus.last_error or 'no answer'}",
                hint="is the broker running, and is the address right?",
            ) from None
        return bus

    @property
    def connected(self) -> bool:
        """Whether there is a live connection now."""
        return self._up.is_set()

    @property
    def max_message(self) -> int:
        """Most payload bytes of one message, headers allowed for."""
        return self.client.max_payload - HEADER_ROOM

    @property
    def client(self) -> Client:
        """The live nats-py client.

        Raises:
            BusUnavailable: there is none at the moment.
        """
        if self._nc is None or not self._up.is_set():
            raise BusUnavailable(
                f"not connected to {self.credentials.url}: {self.last_error or 'connecting'}"
            )
        return self._nc

    async def wait_up(self) -> None:
        """Return as soon as there is a live connection."""
        await self._up.wait()

    async def close(self) -> None:
        """Close for good; pending requests fail."""
        self._closing = True
        for task in (self._reopening, self._renewing):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        nc, self._nc = self._nc, None
        self._up.clear()
        if nc is not None:
            await nc.close()
        self._fail_pending("the connection was closed")

    async def subscribe(self, subject: str, callback: Callback) -> None:
        """Call a plain function for each message, now and after every reconnect.

        What the connection loses is lost: a message is only a hint to read.
        """
        self._subscriptions[subject] = callback
        await self._subscribe(self.client, subject, callback)
        await self.flush()

    async def on_up(self, hook: Hook) -> None:
        """Run a coroutine now and after every reconnect, once subscriptions are renewed."""
        self._hooks.append(hook)
        await hook()

    async def flush(self) -> None:
        """Return when the broker has processed what was sent."""
        nc = self.client
        try:
            # nats-py writes the PING straight to the socket, past publishes that wait for its flusher
            # task: the first round trip lets that task run, the second proves that the broker read on.
            await nc.flush(timeout=int(REQUEST_TIMEOUT_S))
            await nc.flush(timeout=int(REQUEST_TIMEOUT_S))
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"flush failed: {error}") from error

    async def publish(self, subject: str, data: bytes) -> None:
        """Send a core message: at most once, never for what matters.

        Raises:
            BusUnavailable: not connected.
            PayloadTooLarge: more than the broker takes.
        """
        nc = self.client
        self._check_size(subject, data)
        try:
            await nc.publish(subject, data)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"publish to {subject} failed: {error}") from error

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """Send a request and return its one reply.

        Raises:
            BusUnavailable: the connection broke, or nobody serves the subject.
            AuthRefused: the broker refuses this subject to us.
            NotAcked: no reply in time.
            PayloadTooLarge: more than the broker takes; it would cut the connection.
        """
        number = str(next(self._numbers))
        message = await self._ask(number, subject, data, headers, timeout_s)
        if message.status == "503" and not message.data:
            raise BusUnavailable(f"nobody serves {subject}")
        return message

    async def request_all(
        self, subject: str, data: bytes = b"", *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[Message]:
        """Send a request that has several replies, ended by one with a status; return those before it.

        Raises:
            BusUnavailable, AuthRefused, NotAcked, PayloadTooLarge: as `request`.
        """
        number = str(next(self._numbers))
        parts = self._parts[number] = []
        try:
            await self._ask(number, subject, data, None, timeout_s)
        finally:
            del self._parts[number]
        return parts

    async def _ask(
        self, number: str, subject: str, data: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> Message:
        nc = self.client
        self._check_size(subject, data)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[number] = (subject, future)
        try:
            # A fresh dict each time: nats-py changes the one that it is given.
            fresh = dict(headers) if headers else None
            await nc.publish(subject, data, reply=f"{self._inbox}.{number}", headers=fresh)
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise NotAcked(f"no reply from {subject} in {timeout_s:g} s") from None
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"request to {subject} failed: {error}") from error
        finally:
            del self._pending[number]

    def _check_size(self, subject: str, data: bytes) -> None:
        if len(data) > self.max_message:
            raise PayloadTooLarge(f"{len(data)} bytes for {subject}, the broker takes {self.max_message}")

    async def _open_with_backoff(self, *, refused_is_final: bool) -> None:
        pause, longest = BACKOFF_S
        while not self._closing:
            try:
                await self._open()
                return
            except AuthRefused as error:
                # A restarting broker may refuse for a moment; at the prompt it is an answer.
                if refused_is_final:
                    raise
                self._note(error)
            except (BusError, OSError) as error:
                self._note(error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    def _note(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self.last_error:
            log.warning("broker not available: %s", text, extra={"action": "connect"})
        self.last_error = text

    async def _open(self) -> None:
        nc = Client()
        inbox = f"{self.credentials.inbox_prefix}.r.{random.getrandbits(64):016x}"

        async def closed() -> None:
            self._lost(nc)

        async def failed(error: Exception) -> None:
            self._report(error)

        try:
            await nc.connect(
                self.credentials.url,
                user=self.credentials.user,
                password=self.credentials.password,
                inbox_prefix=self.credentials.inbox_prefix,
                name=self._name,
                allow_reconnect=False,
                connect_timeout=int(CONNECT_TIMEOUT_S),
                pending_size=PENDING_BYTES,
                ping_interval=5,  # a half-open link is noticed within three
                closed_cb=closed,
                error_cb=failed,
            )
        except nats.errors.AuthorizationError as error:
            await nc.close()
            raise AuthRefused(
                f"{self.credentials.url} refuses the credential of {self.credentials.name}"
            ) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await nc.close()
            if "authorization violation" in str(error).lower():
                raise AuthRefused(
                    f"{self.credentials.url} refuses the credential of {self.credentials.name}"
                ) from error
            raise BusUnavailable(f"{self.credentials.url}: {error or type(error).__name__}") from error
        try:
            await self._subscribe(nc, f"{inbox}.*", self._reply)
            for subject, callback in list(self._subscriptions.items()):
                await self._subscribe(nc, subject, callback)
        except nats.errors.Error as error:
            raise BusUnavailable(f"{self.credentials.url}: {error}") from error
        if nc.is_closed:
            raise BusUnavailable(f"{self.credentials.url} closed the connection")
        # From here on `_lost` answers for this client; nothing awaits between the check and this.
        self._nc, self._inbox, self.last_error = nc, inbox, None
        self._up.set()
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        for hook in self._hooks:
            try:
                await hook()
            except BusError as error:
                # The connection broke again: the next one runs the hooks again.
                log.debug("not renewed: %s", error, extra={"action": "renew"})

    @staticmethod
    async def _subscribe(nc: Client, subject: str, callback: Callback) -> None:
        async def deliver(msg: Msg) -> None:
            try:
                callback(Message(msg.subject, msg.data, msg.headers or {}, msg.reply))
            except Exception:
                log.exception("a subscriber failed", extra={"action": "deliver", "subject": msg.subject})

        # No client-side limit: nats-py would drop messages over it and tell only its error callback.
        await nc.subscribe(subject, cb=deliver, pending_msgs_limit=0, pending_bytes_limit=0)

    def _reply(self, message: Message) -> None:
        number = message.subject.rsplit(".", 1)[1]
        if number in self._parts and message.status is None:
            self._parts[number].append(message)
            return
        entry = self._pending.get(number)
        if entry is not None and not entry[1].done():
            entry[1].set_result(message)

    def _report(self, error: Exception) -> None:
        """Turn the broker's late 'permissions violation' into a failure of the request that it answers."""
        text = str(error)
        if "permissions violation" in text.lower():
            log.warning("the broker refused: %s", text, extra={"action": "permission"})
            for subject, future in list(self._pending.values()):
                # nats-py lower-cases the subject in the error.
                if f'"{subject.lower()}"' in text.lower() and not future.done():
                    future.set_exception(
                        AuthRefused(f"the broker refuses {subject} to {self.credentials.name}")
                    )
            return
        if not self._closing:
            log.debug("nats: %s", text or type(error).__name__, extra={"action": "nats-error"})

    def _lost(self, nc: Client) -> None:
        if nc is not self._nc or self._closing:
            return
        self._nc = None
        self._up.clear()
        self._fail_pending("the connection to the broker broke")
        log.warning("connection to %s lost", self.credentials.url, extra={"action": "disconnect"})
        self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        try:
            await self._open_with_backoff(refused_is_final=False)
            log.info("connected to %s again", self.credentials.url, extra={"action": "reconnect"})
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("could not reconnect", extra={"action": "reconnect"})
            raise

    def _fail_pending(self, why: str) -> None:
        for _, future in list(self._pending.values()):
            if not future.done():
                future.set_exception(BusUnavailable(why))
