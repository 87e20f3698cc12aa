"""One connection to the broker, from greeting to end: it never reconnects, and its end is always noticed.

Two kinds share this form. `lean` speaks the protocol itself, without a queue or a task between the
socket and whoever waits; `stock` is nats-py, for whoever must have the official client.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from fedbus.base.errors import AuthRefused
from fedbus.bus.credentials import Credentials
from fedbus.bus.replies import Message

CONNECT_TIMEOUT_S = 5.0
CLOSE_S, CLOSE_TRIES = 1.0, 5
PING_S = 5.0  # how often the broker is asked for a sign of life
STALE_S = 15.0  # a link on which no byte moved for so long is dead; a slow one moves

Deliver = Callable[[Message], None]


class Link(ABC):
    """A live connection, once `open` has returned.

    Args:
        credentials: where and as whom.
        name: shown in the broker's monitoring.
        ended: called when the connection is over, for whatever reason; more than once perhaps.
        failed: called with what the broker or the client reports.
    """

    def __init__(
        self,
        credentials: Credentials,
        name: str,
        ended: Callable[[Link], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._credentials = credentials
        self._name = name
        self._ended = ended
        self._failed = failed

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it is over."""

    @property
    @abstractmethod
    def max_payload(self) -> int:
        """Most bytes of headers and payload that the broker takes in one message."""

    @property
    @abstractmethod
    def server_version(self) -> str:
        """The broker's version, as it says."""

    @property
    @abstractmethod
    def moved(self) -> tuple[int, int]:
        """Changes while bytes come in, or go out that had to wait; a lone PING that leaves proves nothing."""

    @abstractmethod
    async def open(self) -> None:
        """Connect and log in.

        Raises:
            AuthRefused: the broker refuses the credential.
            BusUnavailable: it cannot be reached.
        """

    @abstractmethod
    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message, once there is room for it.

        Raises:
            BusUnavailable: the connection is over.
        """

    @abstractmethod
    async def subscribe(self, subject: str, deliver: Deliver, queue: str = "") -> int:
        """Have a plain function called with each message; returns what names the subscription.

        Raises:
            BusUnavailable: the connection is over.
        """

    @abstractmethod
    async def unsubscribe(self, sid: int) -> None:
        """End a subscription; no error where there is none."""

    @abstractmethod
    async def round_trip(self) -> None:
        """Return when the broker has processed what was sent. Not to be cancelled while the link lives."""

    @abstractmethod
    async def close(self) -> None:
        """Send what is unsent, and end it, in bounded time."""

    @abstractmethod
    def abort(self) -> None:
        """Cut it now; what is unsent is lost."""

    @abstractmethod
    async def _ping(self) -> None:
        """Make the broker send something."""

    def _refusal(self, reported: str) -> AuthRefused | None:
        """What the broker reported, if it is that it does not let us in."""
        if "authorization violation" not in reported.lower():
            return None
        return AuthRefused(f"{self._credentials.url} refuses the credential of {self._credentials.name}")

    async def watch(self) -> None:
        """Return when the link is over; cut it when nothing moves though a PING is under way."""
        loop = asyncio.get_running_loop()
        moved, since = (0, 0), loop.time()
        while not self.closed and loop.time() - since < STALE_S:
            await self._ping()
            await asyncio.sleep(PING_S)
            if moved != self.moved:
                moved, since = self.moved, loop.time()
        self.abort()
        self._ended(self)

    async def _wait_sent(self, closing: asyncio.Future[None]) -> None:
        """Wait until what is unsent has gone out; give up when it stops moving, and after a few seconds."""
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
