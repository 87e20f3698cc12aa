"""Messages, and the replies that are waited for: each wait ends by an answer, a refusal or a broken link."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count
from typing import NamedTuple, Self

from fedbus_schemas.base import Payload

from fedbus.base.errors import AuthRefused, BusUnavailable, FedbusError, NotAcked


class Message(NamedTuple):
    """A received message."""

    subject: str
    data: Payload
    headers: Mapping[str, str]
    reply: str = ""

    @property
    def status(self) -> str | None:
        """Status of a server's reply without payload, such as 404.

        A stored message never has one, though its author may have given it a header of that name.
        """
        return None if "Nats-Stream" in self.headers else self.headers.get("Status")


class Wait:
    """A reply that is waited for, known to `Replies` over a `with` block.

    Attributes:
        number: what the reply's subject ends with.
        future: of the reply, or of the error that takes its place.
    """

    __slots__ = ("_all", "future", "number", "parts", "subject")

    def __init__(
        self, every: dict[str, Wait], number: str, subject: str, parts: list[Message] | None
    ) -> None:
        self._all = every
        self.number = number
        self.subject = subject
        self.parts = parts
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Self:
        self._all[self.number] = self
        return self

    def __exit__(self, *_: object) -> None:
        del self._all[self.number]
        if self.future.done() and not self.future.cancelled():
            self.future.exception()  # seen, even where nobody waited for it any more

    async def reply(self, within_s: float) -> Message:
        """The reply.

        Raises:
            BusUnavailable: the link broke.
            AuthRefused: the broker refuses the subject to us.
            NotAcked: there is none in time.
        """
        # One timer, and no task or scope of cancellation: this is done for each message.
        late = f"no reply from {self.subject} in {within_s:g} s"
        timer = asyncio.get_running_loop().call_later(within_s, lambda: self.fail(NotAcked(late)))
        try:
            return await self.future
        finally:
            timer.cancel()

    def fail(self, error: FedbusError) -> None:
        """There will be no reply."""
        if not self.future.done():
            self.future.set_exception(error)


class Replies:
    """What is waited for now, by the number that ends the reply's subject."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._waits: dict[str, Wait] = {}

    def expect(self, subject: str, parts: list[Message] | None = None) -> Wait:
        """A wait, to be entered.

        Args:
            subject: what is asked; a refusal of it ends the wait.
            parts: takes the replies before the one with a status, which ends the wait.
        """
        return Wait(self._waits, str(next(self._numbers)), subject, parts)

    def take(self, message: Message) -> None:
        """A reply came."""
        wait = self._waits.get(message.subject.rsplit(".", 1)[1])
        if wait is None:
            return  # too late
        if wait.parts is not None and message.status is None:
            wait.parts.append(message)
        elif not wait.future.done():
            wait.future.set_result(message)

    def refuse(self, report: str, who: str) -> None:
        """The broker reported that it refuses a subject; it says so late and to nobody in particular."""
        for wait in list(self._waits.values()):
            # nats-py lower-cases the report.
            if f'"{wait.subject.lower()}"' in report.lower():
                wait.fail(AuthRefused(f"the broker refuses {wait.subject} to {who}"))

    def fail(self, why: str) -> None:
        """The link broke."""
        for wait in list(self._waits.values()):
            wait.fail(BusUnavailable(why))
