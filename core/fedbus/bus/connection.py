"""One supervised connection to the broker.

A lost connection fails every pending request at once (retryable), and one loop opens a new
link for as long as it takes, with jittered back-off, and renews every subscription. The
clients' own reconnecting is not used: nats-py's gives up for good on most server errors,
never returns from a first connect that fails, and leaves in-flight work pending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbus.base.errors import AuthRefused, BusError, BusUnavailable, ConfigError, NotAcked, PayloadTooLarge
from fedbus.base.settings import variable
from fedbus.bus.credentials import Credentials
from fedbus.bus.lean import LeanLink
from fedbus.bus.link import Link
from fedbus.bus.replies import Message, Replies
from fedbus.bus.trying import BACKOFF_S, REFUSALS, Trying

__all__ = ["Bus", "Message"]

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
# What the broker counts against max_payload besides the payload: our headers take under 300 bytes.
HEADER_ROOM = 4096
CLIENTS = ("lean", "nats-py")

Callback = Callable[[Message], None]
Hook = Callable[[], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Subscription:
    """A wish to hear a subject, and its present form on the live connection."""

    subject: str
    callback: Callback
    queue: str = ""
    sid: int | None = None


class Bus:
    """A connection that comes back by itself. Make it with `Bus.connect`."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self.credentials = credentials
        self._name = name
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._closing = False
        self._inbox = ""
        self._reopening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()  # what ends with the present connection
        self._subscriptions: list[Subscription] = []
        self._hooks: list[Hook] = []
        self._replies = Replies()
        self._trying = Trying()

    @classmethod
    async def connect(
        cls,
        credentials: Credentials,
        *,
        name: str | None = None,
        wait_s: float | None = 10.0,
        refusals: int | None = REFUSALS,
    ) -> Bus:
        """Connect.

        Args:
            credentials: where and as whom.
            name: shown in the broker's monitoring; the identity by default.
            wait_s: how long to try an absent broker; None: as long as it takes.
            refusals: how often in a row the broker may refuse the credential; None: any number.

        Raises:
            AuthRefused: the broker refused the credential so often.
            TlsRefused, ConfigError: the broker is not to be trusted, or a setting is wrong.
            BusUnavailable: the broker was not reached in `wait_s`.
        """
        bus = cls(credentials, name or credentials.name)
        try:
            async with asyncio.timeout(wait_s):
                await bus._trying.until_open(bus._open, refusals)
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
    def last_error(self) -> str | None:
        """Why there is no connection, as the last try found."""
        return self._trying.last_error

    @property
    def max_message(self) -> int:
        """Most payload bytes of one message, headers allowed for."""
        return self.link.max_payload - HEADER_ROOM

    @property
    def link(self) -> Link:
        """The live connection.

        Raises:
            BusUnavailable: there is none at the moment.
        """
        if self._link is None:
            raise BusUnavailable(
                f"not connected to {self.credentials.url}: {self.last_error or 'connecting'}"
            )
        return self._link

    async def wait_up(self) -> None:
        """Return as soon as there is a live connection."""
        await self._up.wait()

    async def close(self) -> None:
        """Close for good; pending requests fail."""
        self._closing = self._trying.ended = True
        link, self._link = self._link, None
        self._up.clear()
        ending = [*self._tasks, *([self._reopening] if self._reopening else [])]
        self._end_tasks()
        if self._reopening:
            self._reopening.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if link is not None:
            await link.close()
        self._replies.fail("the connection was closed")

    async def subscribe(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Call a plain function for each message, now and after every reconnect.

        With a queue's name, each message goes to one of those that subscribe under it. What the connection
        loses is lost: a message is only a hint to read. Where there is none, the next one makes up for it.

        Raises:
            AuthRefused: the broker refuses this subject to us.
        """
        subscription = Subscription(subject, callback, queue)
        self._subscriptions.append(subscription)
        try:
            with self._replies.expect(subject) as wait:
                with contextlib.suppress(BusUnavailable):
                    await self._subscribe(self.link, subscription)
                    await self.flush()
                # A refusal comes before the answer to the flush.
                if wait.future.done() and isinstance(error := wait.future.exception(), AuthRefused):
                    raise error
        except BaseException:
            await self.unsubscribe(subscription)  # nobody else can: it was not handed out
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; it is not renewed any more."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if subscription.sid is not None and self._link is not None:
            await self._link.unsubscribe(subscription.sid)
            subscription.sid = None

    async def on_up(self, hook: Hook) -> None:
        """Run a coroutine now and after every reconnect, once subscriptions are renewed.

        Where it cannot be done now, it is tried again for as long as this connection lives.
        """
        self._hooks.append(hook)
        try:
            await hook()
        except (BusUnavailable, NotAcked):
            if self._link is not None:
                self._start(self._renew(self._link, [hook]))

    def off_up(self, hook: Hook) -> None:
        """Forget a hook."""
        self._hooks.remove(hook)

    async def flush(self) -> None:
        """Return when the broker has processed what was sent.

        Raises:
            BusUnavailable: the connection broke, or there was no answer in time.
        """
        link = self.link
        with self._replies.expect("") as wait:

            def answered(task: asyncio.Task[None]) -> None:
                if not task.cancelled() and not wait.future.done():
                    error = task.exception()
                    if error is None:
                        wait.future.set_result(Message("", b"", {}))
                    else:
                        wait.fail(BusUnavailable(f"flush failed: {error}"))

            # A task of its own, which only the connection's end cancels.
            self._start(link.round_trip()).add_done_callback(answered)
            try:
                await wait.reply(REQUEST_TIMEOUT_S)
            except NotAcked:
                raise BusUnavailable(f"no answer to a flush in {REQUEST_TIMEOUT_S:g} s") from None

    async def publish(self, subject: str, data: bytes) -> None:
        """Send a core message: at most once, never for what matters.

        Raises:
            BusUnavailable: not connected.
            PayloadTooLarge: more than the broker takes.
        """
        link = self.link
        self._check_size(subject, data, {})
        await link.publish(subject, data)

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
        return await self._ask(subject, data, headers or {}, timeout_s, None)

    async def request_all(
        self, subject: str, data: bytes = b"", *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[Message]:
        """Send a request that has several replies, ended by one with a status; return all, the end last.

        Raises:
            BusUnavailable, AuthRefused, NotAcked, PayloadTooLarge: as `request`.
        """
        parts: list[Message] = []
        end = await self._ask(subject, data, {}, timeout_s, parts)
        return [*parts, end]

    async def _ask(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
        parts: list[Message] | None,
    ) -> Message:
        link = self.link
        self._check_size(subject, data, headers)
        with self._replies.expect(subject, parts) as wait:
            await link.publish(subject, data, f"{self._inbox}.{wait.number}", headers)
            message = await wait.reply(timeout_s)
        if message.status == "503" and not message.data:
            raise BusUnavailable(f"nobody serves {subject}")
        return message

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _check_size(self, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        # The broker counts the headers too, and cuts a connection that sends more.
        of_headers = sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items()) + 16
        if len(data) > self.max_message or of_headers > HEADER_ROOM:
            raise PayloadTooLarge(
                f"{len(data)} bytes and {of_headers} of headers for {subject}, "
                f"the broker takes {self.max_message} and {HEADER_ROOM}"
            )

    async def _open(self) -> None:
        link = _client()(self.credentials, self._name, self._lost, self._report)
        inbox = f"{self.credentials.inbox_prefix}.r.{random.getrandbits(64):016x}"
        try:
            await link.open()
            await self._subscribe(link, Subscription(f"{inbox}.*", self._replies.take))
            for subscription in list(self._subscriptions):
                await self._subscribe(link, subscription)
            if link.closed:
                raise BusUnavailable(f"{self.credentials.url} closed the connection")
        except BaseException:
            link.abort()
            await link.close()
            raise
        # From here on `_lost` answers for this link; nothing awaits between the check and this.
        self._link, self._inbox = link, inbox
        self._up.set()
        self._start(link.watch())
        self._start(self._renew(link, self._hooks))

    async def _renew(self, link: Link, hooks: Sequence[Hook]) -> None:
        for hook in list(hooks):
            while link is self._link and hook in self._hooks:  # it may be forgotten meanwhile
                try:
                    await hook()
                    break
                except BusError as error:
                    log.debug("not renewed: %s", error, extra={"action": "renew"})
                    if not error.retryable:
                        break
                    await asyncio.sleep(BACKOFF_S[0])
                except Exception:
                    log.exception("a hook failed", extra={"action": "renew"})
                    break

    @staticmethod
    async def _subscribe(link: Link, subscription: Subscription) -> None:
        def deliver(message: Message) -> None:
            try:
                subscription.callback(message)
            except Exception:
                about = {"action": "deliver", "subject": message.subject}
                log.exception("a subscriber failed", extra=about)

        subscription.sid = await link.subscribe(subscription.subject, deliver, subscription.queue)

    def _report(self, error: Exception) -> None:
        """Take what the broker reports outside any reply, such as a late 'permissions violation'."""
        text = str(error)
        if "permissions violation" in text.lower():
            log.warning("the broker refused: %s", text, extra={"action": "permission"})
            self._replies.refuse(text, self.credentials.name)
        elif not self._closing:
            log.debug("broker: %s", text or type(error).__name__, extra={"action": "nats-error"})

    def _lost(self, link: Link) -> None:
        if link is not self._link or self._closing:
            return
        self._link = None
        self._up.clear()
        self._end_tasks()
        self._replies.fail("the connection to the broker broke")
        log.warning("connection to %s lost", self.credentials.url, extra={"action": "disconnect"})
        self._reopening = asyncio.get_running_loop().create_task(self._reopen(link))

    async def _reopen(self, before: Link) -> None:
        await before.close()
        await self._trying.until_open(self._open)
        log.info("connected to %s again", self.credentials.url, extra={"action": "reconnect"})


def _client() -> type[Link]:
    """The kind of link that is chosen.

    Raises:
        ConfigError: there is no such kind.
    """
    chosen = variable("FEDBUS_CLIENT") or CLIENTS[0]
    if chosen not in CLIENTS:
        raise ConfigError(f"FEDBUS_CLIENT is {chosen!r}", hint=f"use {' or '.join(CLIENTS)}")
    if chosen == "nats-py":
        from fedbus.bus.stock import StockLink  # imported by those who want it: it takes 8 MiB

        return StockLink
    return LeanLink
